"""LoRA adapters in PEFT's format: `W + scale * B @ A` in place of W (arXiv 2106.09685).

Merged into the weights at load, or kept beside them for some rows alone (`dlm.models.lora.drafter`);
`dlm.models.lora.training` trains one.

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

from dlm._quoting import named, quoted
from dlm.errors import CheckpointError
from dlm.models.backbone import BackboneConfig
from dlm.models.families import Family
from dlm.models.io.files import read_json
from dlm.models.io.naming import family_shapes
from dlm.models.io.sources import SafetensorsSource
from dlm.models.lora.patterns import NamePatterns

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

MAX_RANK, MAX_ALPHA = 1 << 16, 1e6
RANGES = {"r": f"whole numbers from 1 to {MAX_RANK}", "lora_alpha": f"numbers from {-MAX_ALPHA:g} to {MAX_ALPHA:g}"}

NAMED = 8
"""Faults that one message names."""


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
        ranks, alphas = (_patterns(folder, settings, key) for key in ("rank_pattern", "alpha_pattern"))
        if settings.get("base_model_name_or_path"):
            base = quoted(settings["base_model_name_or_path"])
            logging.getLogger(__name__).info("%s was trained on %s", folder, base)
        source = SafetensorsSource(folder, single=WEIGHTS)
        modules = _modules(source)
        shapes = family_shapes(family, config)
        foreign = sorted(module for module in modules if f"{module}.weight" not in shapes)
        if foreign:
            raise CheckpointError(
                f"{folder}: the adapter changes {len(foreign)} modules that the {family.name} family does not have "
                f"({', '.join(map(named, foreign[:3]))}); was it trained on another model?"
            )
        scales = {}
        for module in modules:
            rank = ranks.value(module, settings["r"])
            _check_tensors(source, module, int(rank), shapes[f"{module}.weight"])
            # alpha / sqrt(r) with `use_rslora` (arXiv 2312.03732)
            alpha = alphas.value(module, settings["lora_alpha"])
            scales[f"{module}.weight"] = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
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
        faults.append(f"peft_type={quoted(settings.get('peft_type'))} (supported: 'LORA')")
    for key in ("r", "lora_alpha"):
        if settings.get(key) is None:
            faults.append(f"{key} is missing")
        elif not fits(key, settings[key]):
            faults.append(f"{key}={quoted(settings[key])} (supported: {RANGES[key]})")
    if not isinstance(settings.get("use_rslora"), bool | None):
        faults.append(f"use_rslora={quoted(settings['use_rslora'])} (supported: true, false)")
    for key, value in settings.items():
        if key in PLAIN:
            if value not in PLAIN[key]:
                faults.append(f"{key}={quoted(value)} (supported: {', '.join(map(repr, PLAIN[key]))})")
        elif value and key not in USED | WITHOUT_EFFECT:
            faults.append(f"{named(key)}={quoted(value)} (supported: left out)")
    if faults:
        more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise CheckpointError(f"{folder / CONFIG}: the adapter is not plain LoRA: {'; '.join(faults[:NAMED])}{more}")


def fits(key: str, value: Any) -> bool:
    """Whether a rank (`r`) or an alpha is a number of the size that adapters have."""
    if key == "r":
        return type(value) is int and 1 <= value <= MAX_RANK
    return type(value) in (int, float) and abs(value) <= MAX_ALPHA


def _patterns(folder: Path, settings: Mapping[str, Any], key: str) -> NamePatterns:
    """`rank_pattern` or `alpha_pattern`, every value of it checked."""
    values, kind = settings.get(key) or {}, "r" if key == "rank_pattern" else "lora_alpha"
    if not isinstance(values, dict):
        raise CheckpointError(f"{folder / CONFIG}: {key} is {quoted(values)}, not an object of patterns and numbers")
    for pattern, value in values.items():
        if not fits(kind, value):
            raise CheckpointError(
                f"{folder / CONFIG}: {key} has {quoted(value)} for {quoted(pattern)} (supported: {RANGES[kind]})"
            )
    return NamePatterns(values, f"{folder / CONFIG}: {key}")


def _modules(source: SafetensorsSource) -> list[str]:
    """Modules that have both halves; any other tensor is refused."""
    found: dict[str, set[str]] = {}
    for name in source.names():
        matched = re.fullmatch(re.escape(ROOT) + r"(.+)\.lora_([AB])\.weight", name)
        if matched is None:
            raise CheckpointError(
                f"{source.label}: {named(name)} is not {ROOT}<module>.lora_A.weight or .lora_B.weight; nothing else is "
                "merged"
            )
        found.setdefault(matched[1], set()).add(matched[2])
    for module, halves in found.items():
        if len(halves) < 2:
            raise CheckpointError(
                f"{source.label}: {named(module)} has lora_{halves.pop()} alone; the file is incomplete"
            )
    if not found:
        raise CheckpointError(f"{source.label}: {WEIGHTS} holds no tensor")
    return sorted(found)


def _check_tensors(source: SafetensorsSource, module: str, rank: int, weight: tuple[int, ...]) -> None:
    if len(weight) != 2:
        raise CheckpointError(f"{source.label}: {module} has a weight of shape {list(weight)}; LoRA is for matrices")
    expected = ((rank, weight[1]), (weight[0], rank))
    for name, shape in zip(_names(module), expected, strict=True):
        if source.shape(name) != shape:
            raise CheckpointError(
                f"{source.label}: {name} has shape {list(source.shape(name))}; rank {rank} on a weight of "
                f"{list(weight)} makes it {list(shape)}"
            )
        if not source.dtype(name).is_floating_point:
            raise CheckpointError(
                f"{source.label}: {name} holds {source.dtype(name)}; weights are floating-point numbers"
            )
