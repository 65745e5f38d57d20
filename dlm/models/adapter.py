"""LoRA adapters in PEFT's format: `W + scale * B @ A` in place of W (arXiv 2106.09685).

Merged into the weights at load, or kept beside them for some rows alone (`dlm.models.drafter`); `dlm.models.lora`
trains one.

`adapter_config.json` and `adapter_model.safetensors` are read; what they ask for beyond plain LoRA is refused by name.
The model's module names are those of its checkpoint, so an adapter of `q_proj` finds its rows of the fused weight.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dlm.errors import CheckpointError
from dlm.models.backbone import BackboneConfig
from dlm.models.families import Family
from dlm.models.naming import family_shapes
from dlm.models.sources import SafetensorsSource, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."
"""What PEFT puts before the module names of the model."""

USED = frozenset({"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"})

WITHOUT_EFFECT = frozenset(
    {"base_model_name_or_path", "revision", "task_type", "auto_mapping", "inference_mode", "peft_version",
     "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "eva_config",
     "runtime_config", "ensure_weight_tying", "megatron_core", "qalora_group_size"}
)  # fmt: skip
"""Keys that say how the adapter was trained, which modules it has (its tensors say it too), or that belong to a key
that is refused."""

PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    "loftq_config": ({}, None),
}
"""Values that plain LoRA has; other initial values (pissa, olora, corda, loftq) change the weights of the base too."""


@dataclass(frozen=True)
class LoraAdapter:
    """The adapter of one model, its names, kinds and shapes checked; its tensors are read when they are used.

    Attributes:
        scales: the family's weight name -> what `B @ A` is multiplied by.
    """

    source: SafetensorsSource
    scales: Mapping[str, float]

    @classmethod
    def read(cls, folder: Path, family: Family, config: BackboneConfig, key: str = "model.adapter_path") -> LoraAdapter:
        """Check a folder, which the configuration's `key` names, against a model.

        `CheckpointError` names every setting, or the tensor, that does not fit.
        """
        if not folder.is_dir():
            raise CheckpointError(f"{key}={folder}: no such folder; it holds {CONFIG} and {WEIGHTS}")
        settings = read_json(folder / CONFIG)
        _refuse_unsupported(folder, settings)
        if settings.get("base_model_name_or_path"):
            logging.getLogger(__name__).info("%s was trained on %s", folder, settings["base_model_name_or_path"])
        source = SafetensorsSource(folder, single=WEIGHTS)
        modules = _modules(source)
        shapes = family_shapes(family, config)
        foreign = sorted(module for module in modules if f"{module}.weight" not in shapes)
        if foreign:
            raise CheckpointError(
                f"{folder}: the adapter changes {len(foreign)} modules that the {family.name} family does not have "
                f"({', '.join(foreign[:3])}); was it trained on another model?"
            )
        scales = {}
        for module in modules:
            rank, scale = _rank_and_scale(settings, module)
            _check_shapes(source, module, rank, shapes[f"{module}.weight"])
            scales[f"{module}.weight"] = scale
        return cls(source, scales)

    def rank(self, name: str) -> int:
        """Rank of what is added to the checkpoint's tensor `name`."""
        return self.source.shape(_names(name.removesuffix(".weight"))[0])[0]

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """A `[rank, in]` and B `[out, rank]` of the checkpoint's tensor `name`, as they are stored."""
        down, up = (self.source.read(stored) for stored in _names(name.removesuffix(".weight")))
        return down, up

    @torch.no_grad()
    def merged(self, name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """`weight [out, in]`, the checkpoint's tensor `name`, with what the adapter adds to it, in `dtype`.

        Product and sum are taken in float32 (float64 where either dtype is) and rounded once.
        """
        if name not in self.scales:
            return weight.to(dtype)
        wide = torch.promote_types(torch.promote_types(weight.dtype, dtype), torch.float32)
        down, up = (factor.to(wide) for factor in self.factors(name))
        return (weight.to(wide) + self.scales[name] * (up @ down)).to(dtype)


def write_adapter(
    folder: Path, factors: Mapping[str, tuple[Tensor, Tensor]], *, rank: int, alpha: float, base: str | None
) -> None:
    """A new folder in PEFT's format.

    Args:
        folder: it is made.
        factors: the checkpoint's tensor -> A `[rank, in]` and B `[out, rank]`.
        rank: of each.
        alpha: `B @ A` counts `alpha / rank`.
        base: the model that was trained on, as PEFT will look for it.
    """
    modules = [name.removesuffix(".weight") for name in factors]
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": modules,
        "inference_mode": True,
    }
    tensors = {
        stored: factor.cpu().contiguous()
        for module, pair in zip(modules, factors.values(), strict=True)
        for stored, factor in zip(_names(module), pair, strict=True)
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _names(module: str) -> tuple[str, str]:
    return f"{ROOT}{module}.lora_A.weight", f"{ROOT}{module}.lora_B.weight"


def _refuse_unsupported(folder: Path, settings: Mapping[str, Any]) -> None:
    faults = []
    if settings.get("peft_type") != "LORA":
        faults.append(f"peft_type={settings.get('peft_type')!r} (supported: 'LORA')")
    faults += [f"{key} is missing" for key in ("r", "lora_alpha") if not isinstance(settings.get(key), int | float)]
    for key, value in settings.items():
        if key in PLAIN:
            if value not in PLAIN[key]:
                faults.append(f"{key}={value!r} (supported: {', '.join(map(repr, PLAIN[key]))})")
        elif value and key not in USED | WITHOUT_EFFECT:
            faults.append(f"{key}={value!r} (supported: left out)")
    if faults:
        raise CheckpointError(f"{folder / CONFIG}: the adapter is not plain LoRA: {'; '.join(faults)}")


def _modules(source: SafetensorsSource) -> list[str]:
    """Modules that have both halves; any other tensor is refused."""
    found: dict[str, set[str]] = {}
    for name in source.names():
        matched = re.fullmatch(re.escape(ROOT) + r"(.+)\.lora_([AB])\.weight", name)
        if matched is None:
            raise CheckpointError(
                f"{source.label}: {name} is not {ROOT}<module>.lora_A.weight or .lora_B.weight; nothing else is merged"
            )
        found.setdefault(matched[1], set()).add(matched[2])
    for module, halves in found.items():
        if len(halves) < 2:
            raise CheckpointError(f"{source.label}: {module} has lora_{halves.pop()} alone; the file is incomplete")
    if not found:
        raise CheckpointError(f"{source.label}: {WEIGHTS} holds no tensor")
    return sorted(found)


def _rank_and_scale(settings: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Rank and scale of a module: alpha / r, or alpha / sqrt(r) with `use_rslora` (arXiv 2312.03732)."""
    rank = int(_pattern(settings.get("rank_pattern"), module, settings["r"]))
    alpha = float(_pattern(settings.get("alpha_pattern"), module, settings["lora_alpha"]))
    if rank < 1:
        raise CheckpointError(f"{CONFIG}: the rank of {module} is {rank}; it must be at least 1")
    return rank, alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that is the end of the module's name, as PEFT chooses it."""
    for pattern, value in (patterns or {}).items():
        try:
            fits = re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module)
        except re.error as error:
            raise CheckpointError(f"{CONFIG}: the pattern {pattern!r} is no regular expression: {error}") from None
        if fits:
            return value
    return default


def _check_shapes(source: SafetensorsSource, module: str, rank: int, weight: tuple[int, ...]) -> None:
    if len(weight) != 2:
        raise CheckpointError(f"{source.label}: {module} has a weight of shape {list(weight)}; LoRA is for matrices")
    expected = ((rank, weight[1]), (weight[0], rank))
    for name, shape in zip(_names(module), expected, strict=True):
        if source.shape(name) != shape:
            raise CheckpointError(
                f"{source.label}: {name} has shape {list(source.shape(name))}; rank {rank} on a weight of "
                f"{list(weight)} makes it {list(shape)}"
            )
