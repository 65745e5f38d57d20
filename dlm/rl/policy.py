"""A model as the trainers of transformers want one: a `PreTrainedModel` around a `Backbone`.

    policy = Policy.from_pretrained(folder, device="cuda")
    rollouts = Rollouts(policy.checkpoint, trainer=policy.backbone, codec=TextCodec.load(folder))
    policy.save_pretrained(output)                  # the family's own format again

It is called with a question to its likelihoods and not with `input_ids`: a masked diffusion model has no logits of a
next token.
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
    """What trainers ask of a configuration. Nothing is built from it; `Policy.save_pretrained` writes the family's."""

    model_type = "dlm_policy"


class Policy(PreTrainedModel):
    """A backbone in training. Its parameters want gradients from here on.

    Scores are computed once more in the backward pass, micro-batch by micro-batch, whether or not a trainer asks for
    gradient checkpointing.

    Args:
        checkpoint: the model, on the device where it is trained.
        score_tokens, logits_mib: as in `Rollouts`.

    Raises:
        ConfigError: a model with a drafter, which would be neither trained nor saved.
    """

    config_class = PolicyConfig
    base_model_prefix = "backbone"
    main_input_name = "ask"
    supports_gradient_checkpointing = True

    def __init__(self, checkpoint: Checkpoint, *, score_tokens: int = 8192, logits_mib: float = 512) -> None:
        architecture, special = checkpoint.backbone.config, checkpoint.special
        if checkpoint.backbone.has_drafter:
            raise ConfigError("a model with a drafter is not trained; load it without drafter_adapter_path")
        told: dict[str, Any] = {
            "architectures": [type(self).__name__],
            "vocab_size": architecture.vocab_size,
            "hidden_size": architecture.hidden_size,
            "num_hidden_layers": architecture.num_layers,
            "mask_token_id": special.mask_id,
            "tie_word_embeddings": False,  # the backbone ties its own
        }
        super().__init__(PolicyConfig(**told))
        self.checkpoint = checkpoint
        self.backbone = checkpoint.backbone.requires_grad_(True)
        self._limits: dict[str, Any] = {"score_tokens": score_tokens, "logits_mib": logits_mib}
        self.likelihood = Likelihood(self.backbone, special, max_tokens=score_tokens, logits_mib=logits_mib)
        self.gradient_checkpointing = False  # which trainers set
        ends = list(special.end_ids) or None
        self.generation_config = GenerationConfig(eos_token_id=ends)  # type: ignore[no-untyped-call]  # not typed there

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], **loading: Any) -> Self:  # type: ignore[override]  # the parent's arguments are those of its own formats
        """The model of a checkpoint folder; `loading` as in `dlm.models.io.loading.load_checkpoint`."""
        return cls(load_checkpoint(Path(folder), **loading))

    def forward(self, ask: Callable[[Likelihood], list[Tensor]]) -> list[Tensor]:
        """What `ask` finds with the model's likelihoods, for instance `Scores.per_token`.

        Asked through here, what wraps a model (DistributedDataParallel, autocast) takes part.
        """
        return ask(self.likelihood)

    def frozen_copy(self) -> Policy:
        """A reference that stays what the model is now."""
        twin = Policy(replace(self.checkpoint, backbone=copy.deepcopy(self.backbone)), **self._limits)
        twin.train(False)
        twin.requires_grad_(False)
        return twin

    def save_pretrained(  # type: ignore[override]  # what cannot be honoured is no argument
        self,
        save_directory: str | PathLike[str],
        *,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Write config.json and model.safetensors in the family's own format, which `load_checkpoint` reads.

        Args:
            save_directory: the folder; it is made.
            is_main_process: whether this process is the one that writes.
            state_dict: the weights, where a trainer has gathered them; None: the model's own.
            safe_serialization: what else there was is not written any more.

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
        """Take the weights of a folder of the same architecture. Raises `CheckpointError`; then nothing was changed."""
        source = folder_source(Path(folder), self.backbone)
        shapes = {name: (source.shape(name), source.dtype(name)) for name in source.names()}
        writer = WeightWriter(shapes, self.checkpoint.family, self.backbone)
        source.verify(writer.names)
        writer.write_all({name: source.read(name) for name in writer.names})
        writer.finish()
