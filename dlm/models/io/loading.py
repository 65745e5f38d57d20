"""From a checkpoint folder to a model: straight to the target device and dtype, one tensor at a time.

Nothing from a checkpoint is executed: the model code here is native, and weights come through `TensorSource`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dlm._quoting import quoted
from dlm.errors import CheckpointError
from dlm.models.backbone import Backbone, BackboneConfig
from dlm.models.families import FAMILIES, LLADA, Family, SpecialTokens, family_of
from dlm.models.io.files import read_json
from dlm.models.io.naming import family_places
from dlm.models.io.sources import SINGLE, SafetensorsSource, TensorSource
from dlm.models.io.weights import ModelTensors
from dlm.models.lora.drafter import Drafter
from dlm.models.sharding import Cut, Shard
from dlm.models.sizes import SIZES, family_of_size

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class CheckpointConfig:
    """What a folder says about its model, read without touching the weights."""

    folder: Path
    family: Family
    backbone: BackboneConfig
    special: SpecialTokens
    dtype: str


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model."""

    backbone: Backbone
    family: Family
    special: SpecialTokens
    folder: Path | None

    @property
    def max_positions(self) -> int:
        return self.backbone.config.max_positions


def read_checkpoint_config(folder: Path, special: SpecialTokens | None = None) -> CheckpointConfig:
    """Family, architecture and special ids; no weight is read.

    Special ids are those of config.json, else those of the tokenizer's files; `special` replaces them, for a folder
    where neither names the mask.
    """
    path = folder / "config.json"
    config = read_json(path)
    family = family_of(config, path)
    backbone = family.read_config(config, path)
    special = special or _special_tokens(folder, family, config)
    outside = [each for each in (special.mask_id, *special.end_ids) if not 0 <= each < backbone.vocab_size]
    if outside:
        raise CheckpointError(
            f"{folder}: the special ids {quoted(outside)} are outside the vocabulary of {backbone.vocab_size} that "
            "config.json states; the tokenizer, or special=SpecialTokens(...), is of another model"
        )
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return CheckpointConfig(folder, family, backbone, special, dtype)


def _special_tokens(folder: Path, family: Family, config: Mapping[str, Any]) -> SpecialTokens:
    named = family.read_special(config, folder / "config.json")
    mask = _token_id(folder, family.mask_text) if named.mask_id is None else named.mask_id
    if mask is None:
        raise CheckpointError(
            f"{folder} does not name the mask: config.json lacks mask_token_id and there is no tokenizer.json with the "
            f"token {family.mask_text}; add either, or pass special=SpecialTokens(...)"
        )
    eos, *others = named.eos_ids or (_token_id(folder, family.eos_text),)
    ends = tuple(each for each in others if each is not None)
    return SpecialTokens(mask, eos, _token_id(folder, family.turn_end), ends)


def _token_id(folder: Path, text: str | None) -> int | None:
    """Id of an added token in tokenizer.json, or None when the folder has no such file or token."""
    path = folder / "tokenizer.json"
    if text is None or not path.exists():
        return None
    tokens = read_json(path).get("added_tokens") or []
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        raise CheckpointError(f"{path}: added_tokens is {quoted(tokens)}, not a list of objects with content and id")
    for token in tokens:
        if token.get("content") == text:
            if type(token.get("id")) is not int:
                raise CheckpointError(f"{path}: the token {text} has the id {quoted(token.get('id'))}, not a number")
            return int(token["id"])
    return None


def load_checkpoint(
    folder: Path,
    *,
    dtype: str = "auto",
    device: str | torch.device = "cpu",
    special: SpecialTokens | None = None,
    weights: TensorSource | None = None,
    prefix: str | None = None,
    adapter: Path | None = None,
    drafter: Path | None = None,
    shard: Shard | None = None,
) -> Checkpoint:
    """The model of a folder on `device`.

    Args:
        folder: config, tokenizer and, unless `weights` is given, safetensors.
        dtype: `auto` is the one that config.json names.
        device: where the weights go.
        special: replaces the special ids of the folder's files (see `read_checkpoint_config`).
        weights: tensors from elsewhere, such as a `DcpSource`.
        prefix: what stands in `weights` before the names; None finds it (see `dlm.models.io.naming`).
        adapter: folder of a LoRA adapter that is merged into the weights.
        drafter: folder of a LoRA adapter for the drafts of `linear_spec` alone.
        shard: the part of the model to load; None loads all of it.

    Raises:
        ConfigError: the model cannot be split as `shard` says.
        CheckpointError: a foreign family; a missing, truncated or misshapen tensor, or one left over; an adapter of
            another model or kind.
    """
    config = read_checkpoint_config(folder, special)
    name = config.dtype if dtype == "auto" else dtype
    if name not in DTYPES:
        raise CheckpointError(f"{folder}: dtype {quoted(name)} is not one of auto, {', '.join(DTYPES)}")
    tensors = ModelTensors.find(
        SafetensorsSource(folder) if weights is None else weights,
        config.family,
        config.backbone,
        prefix=prefix,
        dtype=DTYPES[name],
        adapter=adapter,
    )
    whole = config.backbone
    drafting = None if drafter is None else Drafter.read(drafter, config.family, whole)
    backbone = empty_backbone(whole if shard is None else shard.config(whole), DTYPES[name], device)
    _fill(backbone, config.family, tensors, {} if shard is None else shard.tensor_cuts(config.family, whole))
    if drafting is not None:
        drafting.attach(backbone, None if shard is None else lambda parameter: shard.cut(parameter, whole))
    return Checkpoint(backbone.eval().requires_grad_(False), config.family, config.special, folder)


def random_checkpoint(
    size: str,
    *,
    seed: int = 0,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    shard: Shard | None = None,
) -> Checkpoint:
    """A model of a named size (`sizes.SIZES`) with random weights, or a part of it; its last three ids are eos, eot and
    mask."""
    config, name = SIZES[size], family_of_size(size)
    family = next(family for family in FAMILIES if family.name == name)
    backbone = empty_backbone(config if shard is None else shard.config(config), DTYPES[dtype], device)
    if shard is None:
        backbone.initialize(seed)
    else:
        _fill_random(backbone, config, seed, shard)
    last = config.vocab_size - 1
    special = SpecialTokens(mask_id=last, eos_id=last - 2, eot_id=last - 1)
    return Checkpoint(backbone.eval().requires_grad_(False), family, special, None)


def empty_backbone(config: BackboneConfig, dtype: torch.dtype, device: str | torch.device) -> Backbone:
    """A backbone whose parameters are allocated once, on the target, and not yet filled."""
    with torch.device("meta"):
        backbone = Backbone(config)
    backbone.to(dtype)
    backbone.to_empty(device=device)
    if config.tie_embeddings:
        backbone.lm_head.weight = backbone.embedding.weight
    backbone.rotary.float().reset_tables()
    return backbone


@torch.no_grad()
def _fill(backbone: Backbone, family: Family, tensors: ModelTensors, cuts: Mapping[str, Cut]) -> None:
    """Copy each tensor, or the part of it that `cuts` names, to its place; one at a time is in memory."""
    places = family_places(family, backbone)
    for name in tensors.names():
        places[name].copy_(tensors.read(name, cuts.get(name)))


@torch.no_grad()
def _fill_random(part: Backbone, whole: BackboneConfig, seed: int, shard: Shard) -> None:
    """The part's share of the values that the whole model would have; one parameter at a time is in memory."""
    with torch.device("meta"):
        model = Backbone(whole)
    places = dict(part.named_parameters())
    for name, values in model.random_values(seed):
        cut = shard.cut(name, whole)
        places[name].copy_(values if cut is None else cut.of(values))


def save_checkpoint(
    backbone: Backbone,
    special: SpecialTokens,
    folder: Path,
    *,
    family: Family = LLADA,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json and model.safetensors in the family's own format; `extra` adds keys to the config."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: place.detach().cpu().contiguous().clone() for name, place in family_places(family, backbone).items()
    }
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    dtype = str(backbone.dtype).removeprefix("torch.")
    config = {**family.write_config(backbone.config, special), "torch_dtype": dtype, **(extra or {})}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
