"""Small configs of every family to change keys of, and weights that fit them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dlm.errors import CheckpointError
from dlm.models.architecture import BackboneConfig
from dlm.models.families import FAMILIES, NEMOTRON, Family, SpecialTokens, family_of
from dlm.models.io.loading import save_checkpoint
from dlm.models.sizes import SIZES
from tests.models.attention.windows import shaken

GOLDENS = Path(__file__).parents[1] / "goldens"
SPECIAL = SpecialTokens(mask_id=511, eos_id=510)
FOLDERS = {"llada": "llada", "llada_moe": "llada_moe", "llada2": "llada2_moe", "dream": "dream", "sdar": "sdar"}
CONFIGS: dict[str, dict[str, Any]] = {
    name: json.loads((GOLDENS / folder / "config.json").read_text()) for name, folder in FOLDERS.items()
}
CONFIGS["nemotron"] = NEMOTRON.write_config(SIZES["tiny_nemotron"], SPECIAL)
NAMES = sorted(CONFIGS)


def weights_of(name: str, folder: Path) -> Path:
    """A new folder with the weights of a family's small model."""
    if name == "nemotron":
        model = shaken("tiny_nemotron")
        save_checkpoint(model.backbone, model.special, folder, family=NEMOTRON)
    else:
        folder.mkdir()
        shutil.copy(GOLDENS / FOLDERS[name] / "model.safetensors", folder)
    return folder


def write(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def family_named(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def read(name: str, *dropped: str, **changes: Any) -> BackboneConfig:
    """The architecture of a family's small config with keys changed and dropped."""
    config = {key: value for key, value in {**CONFIGS[name], **changes}.items() if key not in dropped}
    return family_of(config).read_config(config)


def refusal(name: str, *dropped: str, **changes: Any) -> str:
    """What `read` is refused with."""
    with pytest.raises(CheckpointError) as caught:
        read(name, *dropped, **changes)
    return str(caught.value)
