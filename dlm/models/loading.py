"""From a checkpoint folder or hub id to a model: straight to the target device and dtype, one tensor at a time.

Nothing from a checkpoint is executed: the model code here is native, and weights are safetensors only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dlm.errors import CheckpointError
from dlm.models.backbone import Backbone, BackboneConfig
from dlm.models.families import FAMILIES, LLADA, Family, SpecialTokens, WeightPart, family_of
from dlm.models.sizes import SIZES, family_of_size

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


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


def resolve_folder(path: str, revision: str | None = None) -> Path:
    """A local folder as it is, or the snapshot of a hub id at `revision` (a commit, tag or branch).

    The hub is asked with the token of the environment variable HF_TOKEN, if any. Raises `CheckpointError`.
    """
    folder = Path(path).expanduser()
    if folder.exists():
        if revision is not None:
            raise CheckpointError(
                f"model.revision={revision!r} has no meaning for the local folder {folder}; leave it out"
            )
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is a file; model.path names a folder with config.json and safetensors")
        return folder
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise CheckpointError(
            f"model.path={path!r} is neither a folder that exists nor a hub id of the form owner/name"
        )
    if revision is None:
        raise CheckpointError(
            f"model.revision is not set for the hub id {path!r}; pin a commit, so that weights cannot change"
        )
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(
            path,
            revision=revision,
            allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"],
            token=os.environ.get("HF_TOKEN"),
        )
    except Exception as error:
        raise CheckpointError(
            f"cannot fetch {path!r} at revision {revision!r}: {type(error).__name__}: {error}"
        ) from error
    return Path(snapshot)


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object from a file; `CheckpointError` says what is wrong with it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; a checkpoint folder holds config.json and safetensors") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def read_checkpoint_config(folder: Path, special: SpecialTokens | None = None) -> CheckpointConfig:
    """Family, architecture and special ids; no weight is read.

    Special ids are those of config.json, else those of the tokenizer's files; `special` replaces them, for a folder
    where neither names the mask.
    """
    config = read_json(folder / "config.json")
    family = family_of(config)
    backbone = family.read_config(config)
    special = special or _special_tokens(folder, family, config)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return CheckpointConfig(folder, family, backbone, special, dtype)


def _special_tokens(folder: Path, family: Family, config: Mapping[str, Any]) -> SpecialTokens:
    named = family.read_special(config)
    mask = _token_id(folder, family.mask_text) if named.mask_id is None else named.mask_id
    if mask is None:
        raise CheckpointError(
            f"{folder} does not name the mask: config.json lacks mask_token_id and there is no tokenizer.json with the "
            f"token {family.mask_text}; add either, or pass special=SpecialTokens(...)"
        )
    eos = _token_id(folder, family.eos_text) if named.eos_id is None else named.eos_id
    return SpecialTokens(mask, eos, _token_id(folder, family.turn_end))


def _token_id(folder: Path, text: str | None) -> int | None:
    """Id of an added token in tokenizer.json, or None when the folder has no such file or token."""
    path = folder / "tokenizer.json"
    if text is None or not path.exists():
        return None
    for token in read_json(path).get("added_tokens", []):
        if token.get("content") == text:
            return int(token["id"])
    return None


def load_checkpoint(
    folder: Path,
    *,
    dtype: str = "auto",
    device: str | torch.device = "cpu",
    special: SpecialTokens | None = None,
) -> Checkpoint:
    """The model of a folder on `device` in `dtype` (`auto`: as stored by its config).

    `special` replaces the special ids of the folder's files (see `read_checkpoint_config`). Raises `CheckpointError`
    for a foreign family, a missing, truncated or misshapen tensor, or a tensor left over.
    """
    config = read_checkpoint_config(folder, special)
    name = config.dtype if dtype == "auto" else dtype
    if name not in DTYPES:
        raise CheckpointError(f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}")
    backbone = empty_backbone(config.backbone, DTYPES[name], device)
    _fill(backbone, config.family, folder)
    return Checkpoint(backbone.eval().requires_grad_(False), config.family, config.special, folder)


def random_checkpoint(
    size: str, *, seed: int = 0, dtype: str = "float32", device: str | torch.device = "cpu"
) -> Checkpoint:
    """A model of a named size (`sizes.SIZES`) with random weights; its last three ids are eos, eot and mask."""
    config, name = SIZES[size], family_of_size(size)
    family = next(family for family in FAMILIES if family.name == name)
    backbone = empty_backbone(config, DTYPES[dtype], device)
    backbone.initialize(seed)
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


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index of a sharded checkpoint or from the single file."""
    index = folder / INDEX
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index} has no weight_map")
        return {name: folder / file for name, file in weight_map.items()}
    single = folder / SINGLE
    if not single.exists():
        raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}; only safetensors are read")
    with _open(single) as file:
        return dict.fromkeys(file.keys(), single)


def _open(path: Path, device: str = "cpu") -> Any:
    try:
        return safe_open(path, framework="pt", device=device)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is named by the index and does not exist; the download is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}); it may be truncated: fetch it again"
        ) from error


@torch.no_grad()
def _fill(backbone: Backbone, family: Family, folder: Path) -> None:
    files = tensor_files(folder)
    parameters = dict(backbone.named_parameters())
    parts = {part.name: (name, part) for name, list_ in family.weights(backbone.config).items() for part in list_}
    missing = sorted(parts.keys() - files.keys())
    foreign = sorted(files.keys() - parts.keys())
    if missing or foreign:
        raise CheckpointError(
            f"{folder}: the tensors are not those of the {family.name} family: "
            f"{len(missing)} missing ({', '.join(missing[:3])}), {len(foreign)} unknown ({', '.join(foreign[:3])})"
        )
    by_file: dict[Path, list[str]] = {}
    for name in parts:
        by_file.setdefault(files[name], []).append(name)
    for path, names in by_file.items():
        with _open(path) as file:
            stored = set(file.keys())
            for name in names:
                if name not in stored:
                    raise CheckpointError(f"{path} lacks {name}, which the index says it holds")
                target, part = parts[name]
                _copy_part(parameters[target], part, file.get_tensor(name))


def _copy_part(parameter: Tensor, part: WeightPart, tensor: Tensor) -> None:
    place = part.place(parameter)
    if tensor.shape != place.shape:
        raise CheckpointError(f"{part.name} has shape {list(tensor.shape)}, config.json makes it {list(place.shape)}")
    place.copy_(tensor)


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
    parameters = dict(backbone.named_parameters())
    tensors = {
        part.name: part.place(parameters[name]).detach().cpu().contiguous().clone()
        for name, parts in family.weights(backbone.config).items()
        for part in parts
    }
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    dtype = str(backbone.dtype).removeprefix("torch.")
    config = {**family.write_config(backbone.config, special), "torch_dtype": dtype, **(extra or {})}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
