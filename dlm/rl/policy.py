"""A `PreTrainedModel` around a `Backbone`, for trainers built on transformers.

    policy = Policy.from_pretrained(folder, device="cuda")
    rollouts = Rollouts(policy.checkpoint, trainer=policy.backbone, codec=TextCodec.load(folder))
    policy.save_pretrained(output)                  # in the family's own format

Its forward takes a function of its likelihoods, not `input_ids`: a masked diffusion model has no next-token logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from dlm.errors import ConfigError
from dlm.likelihood import Likelihood
from dlm.models.backbone import Backbone
from dlm.models.io.loading import Checkpoint, load_checkpoint, save_checkpoint
from dlm.rl.weights.update import WeightWriter, folder_source

PREFIX = "backbone."


class PolicyConfig(PretrainedConfig):  # type: ignore[no-untyped-call]  # its __init_subclass__ is not typed
    """The config fields that trainers read. No model is built from it; `Policy.save_pretrained` writes the family's."""

    model_type = "dlm_policy"


class Policy(PreTrainedModel):
    """A backbone in training. Creating it enables gradients on the parameters.

    The backward pass recomputes scores micro-batch by micro-batch, whether or not the trainer enables gradient
    checkpointing.

    Args:
        checkpoint: the model, on the device where it is trained.
        score_tokens, logits_mib: as in `Rollouts`.

    Raises:
        ConfigError: the model has a drafter, which would be neither trained nor saved.
    """

    config_class = PolicyConfig
    base_model_prefix = "backbone"
    main_input_name = "ask"
    supports_gradient_checkpointing = True

    def __init__(self, checkpoint: Checkpoint, *, score_tokens: int = 8192, logits_mib: float = 512) -> None:
        architecture, special = checkpoint.backbone.config, checkpoint.special
        if checkpoint.backbone.has_drafter:
            raise ConfigError("a model with a drafter cannot be trained; load it without drafter_adapter_path")
        told: dict[str, Any] = {
            "architectures": [type(self).__name__],
            "vocab_size": architecture.vocab_size,
            "hidden_size": architecture.hidden_size,
            "num_hidden_layers": architecture.num_layers,
            "mask_token_id": special.mask_id,
            "tie_word_embeddings": False,  # the backbone handles tying
        }
        super().__init__(PolicyConfig(**told))
        self.checkpoint = checkpoint
        self.backbone = checkpoint.backbone.requires_grad_(True)
        self._limits: dict[str, Any] = {"score_tokens": score_tokens, "logits_mib": logits_mib}
        self.likelihood = Likelihood(self.backbone, special, max_tokens=score_tokens, logits_mib=logits_mib)
        self.gradient_checkpointing = False  # trainers set this
        ends = list(special.end_ids) or None
        self.generation_config = GenerationConfig(eos_token_id=ends)  # type: ignore[no-untyped-call]  # untyped upstream

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], **loading: Any) -> Self:  # type: ignore[override]  # the parent's arguments are for its own formats
        """The model of a checkpoint folder; `loading` as in `dlm.models.io.loading.load_checkpoint`."""
        return cls(load_checkpoint(Path(folder), **loading))

    def forward(self, ask: Callable[[Likelihood], list[Tensor]]) -> list[Tensor]:
        """Return `ask(likelihood)`, for instance per-token scores.

        Going through `forward` makes wrappers such as DistributedDataParallel and autocast apply.
        """
        return ask(self.likelihood)

    def frozen_copy(self) -> Policy:
        """A frozen copy of the model as it is now, for use as the reference."""
        twin = Policy(replace(self.checkpoint, backbone=copy.deepcopy(self.backbone)), **self._limits)
        twin.train(False)
        twin.requires_grad_(False)
        return twin

    def save_pretrained(  # type: ignore[override]  # unsupported arguments are left out
        self,
        save_directory: str | PathLike[str],
        *,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Write config.json and model.safetensors in the family's own format, which `load_checkpoint` reads.

        Args:
            save_directory: the folder; created if missing.
            is_main_process: only the main process writes.
            state_dict: weights gathered by the trainer; None: the model's own.
            safe_serialization: must be True; no other format is written.

        Raises:
            ConfigError: `safe_serialization` is False.
        """
        if not safe_serialization:
            raise ConfigError("safe_serialization=False: only safetensors are written; set save_safetensors=True")
        if not is_main_process:
            return
        backbone = self.backbone
        if state_dict is not None:
            with torch.device("meta"):
                backbone = Backbone(self.backbone.config)
            backbone.load_state_dict(
                {name.removeprefix(PREFIX): each for name, each in state_dict.items()}, assign=True
            )
        save_checkpoint(backbone, self.checkpoint.special, Path(save_directory), family=self.checkpoint.family)

    def read_weights(self, folder: str | PathLike[str]) -> None:
        """Load weights from a folder of the same architecture. On `CheckpointError` nothing is changed."""
        source = folder_source(Path(folder), self.backbone)
        shapes = {name: (source.shape(name), source.dtype(name)) for name in source.names()}
        writer = WeightWriter(shapes, self.checkpoint.family, self.backbone)
        source.verify(writer.names)
        writer.write_all({name: source.read(name) for name in writer.names})
        writer.finish()
