"""One training run: from a checked configuration to a checkpoint folder in LLaDA's format, with its log.

The folder gets `config.json`, `model.safetensors`, the tokenizer's files and `training.jsonl`: a header line that says
what was run, then one line per `log_every` steps and per exact-match validation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from dlm.demo import CHECKPOINT
from dlm.errors import ConfigError
from dlm.models.backbone import Backbone, BackboneConfig
from dlm.models.families import LLADA, SpecialTokens
from dlm.models.io.loading import Checkpoint, empty_backbone, load_checkpoint, save_checkpoint
from dlm.pipeline.trainer import quieten
from dlm.text import TextCodec
from dlm.training.data import CanvasBuilder, MaskedBatches, file_canvases
from dlm.training.masking import Masker, TrainingCanvas
from dlm.training.module import TrainingLM, TrainingOptions
from dlm.training.optimizers import OptimizerOptions


class RunLog(Callback):
    """Writes and prints `training.jsonl`, and saves a checkpoint at each validation and at the end.

    Args:
        folder: output folder.
        header: first line of the log.
        checkpoint: the model in training.
        codec: tokenizer, for validation.
        log_every: steps between lines.
        validate_every: steps between validations on the demo's validation set; None: no validation.
    """

    def __init__(
        self,
        folder: Path,
        header: dict[str, Any],
        checkpoint: Checkpoint,
        codec: TextCodec,
        log_every: int,
        validate_every: int | None,
    ) -> None:
        self.path = folder / "training.jsonl"
        self.folder, self.checkpoint, self.codec = folder, checkpoint, codec
        self.log_every, self.validate_every = log_every, validate_every
        self.losses: list[torch.Tensor] = []
        self.steps, self.begun = 0, time.perf_counter()
        self.path.write_text(json.dumps(header) + "\n", encoding="utf-8")

    def _write(self, row: dict[str, Any]) -> None:
        row = {"step": self.steps, "seconds": round(time.perf_counter() - self.begun, 1), **row}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += 1
        self.losses.append(outputs["loss"])
        if self.steps % self.log_every == 0:
            self._write({"loss": round(float(torch.stack(self.losses).mean()), 4)})
            self.losses.clear()
        if self.validate_every is not None and self.steps % self.validate_every == 0:
            self._measure()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save()

    def _save(self) -> Backbone:
        copy = plain_copy(self.checkpoint.backbone)
        save_checkpoint(copy, self.checkpoint.special, self.folder, family=self.checkpoint.family)
        return copy

    def _measure(self) -> None:
        from dlm.demo.tasks import VALIDATION_PER_FAMILY, VALIDATION_SEED, held_out
        from dlm.demo.validation import measure

        examples = held_out(VALIDATION_SEED, VALIDATION_PER_FAMILY)
        accuracy = measure(self._save(), self.checkpoint.special, self.codec, examples)
        families = {name: round(share, 4) for name, share in accuracy.families.items()}
        row = {"exact_match": round(accuracy.overall, 4), "forwards": round(accuracy.forwards, 2), "families": families}
        self._write(row)


def plain_copy(backbone: Backbone) -> Backbone:
    """A copy with the same weights and no compiled layers, on the CPU, for decoding and saving."""
    copy = empty_backbone(backbone.config, torch.float32, "cpu")
    copy.load_state_dict(backbone.state_dict())
    return copy.eval().requires_grad_(False)


def build_model(config: DictConfig, tokenizer: Any) -> Checkpoint:
    """The model to train, in float32 with gradients enabled. Raises `CheckpointError`, `ConfigError`."""
    if config.model.path is not None:
        checkpoint = load_checkpoint(Path(config.model.path), dtype="float32")
        checkpoint.backbone.train().requires_grad_(True)
        return checkpoint
    shape = config.model
    if shape.hidden_size % shape.num_heads:
        raise ConfigError(f"model.hidden_size={shape.hidden_size} must divide by model.num_heads={shape.num_heads}")
    backbone = Backbone(
        BackboneConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_layers=shape.num_layers,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_heads,
            head_dim=shape.hidden_size // shape.num_heads,
            rms_norm_eps=1e-5,
            rope_theta=shape.rope_theta,
            max_positions=shape.max_positions,
            tie_embeddings=shape.tie_embeddings,
        )
    )
    backbone.initialize(config.seed)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.dim() == 2:
                parameter.mul_(shape.init_std / 0.02)
    if tokenizer.mask_token_id is None:
        raise ConfigError(f"model.tokenizer={shape.tokenizer}: a new model needs a tokenizer with a mask token")
    end_of_turn = tokenizer.get_vocab().get(str(LLADA.turn_end))
    return Checkpoint(
        backbone, LLADA, SpecialTokens(tokenizer.mask_token_id, tokenizer.eos_token_id, end_of_turn), None
    )


def build_batches(config: DictConfig, tokenizer: Any, special: SpecialTokens) -> MaskedBatches:
    """The endless batches of a run. Raises `DataError`."""
    data, builder = config.data, CanvasBuilder(tokenizer, special)
    lengths = list(data.gen_lengths)

    def canvases() -> Iterator[TrainingCanvas]:
        if data.path is not None:
            return file_canvases(Path(data.path), builder, lengths, data.tight_share, config.seed)
        from dlm.training.demo_stream import demo_canvases

        return demo_canvases(builder, config.seed, lengths, data.tight_share)

    masker = Masker(special.mask_id, list(data.block_lengths), data.anywhere_share)
    return MaskedBatches(canvases, masker, data.batch_size, config.seed)


def train(config: DictConfig, command: str) -> Path:
    """Train as configured and return the checkpoint folder.

    Args:
        config: checked against `TrainConfig`.
        command: the command line, for the log.
    """
    quieten()
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    source = config.model.tokenizer or config.model.path or str(CHECKPOINT)
    codec = TextCodec.load(Path(source))
    tokenizer = codec.tokenizer
    checkpoint = build_model(config, tokenizer)
    batches = build_batches(config, tokenizer, checkpoint.special)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() != Path(source).resolve():
        tokenizer.save_pretrained(folder)
    options = config.optimizer
    module = TrainingLM(
        checkpoint.backbone,
        TrainingOptions(
            OptimizerOptions(
                options.muon_lr, options.adamw_lr, options.weight_decay, options.warmup_steps, options.clip_norm
            ),
            options.weighting,
            config.trainer.max_steps,
            config.trainer.compile,
        ),
    )
    header = {
        "command": command,
        "seed": config.seed,
        "steps": config.trainer.max_steps,
        "parameters": sum(parameter.numel() for parameter in checkpoint.backbone.parameters()),
    }
    log = RunLog(folder, header, checkpoint, codec, config.log_every, config.validate_every)
    trainer = Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        precision=config.trainer.precision,
        max_epochs=1,
        limit_train_batches=config.trainer.max_steps,
        callbacks=[log],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return folder
