"""Where a model comes from: a checkpoint, or random weights. Values first, weights when `load` is called.

Importing this costs nothing; torch comes with `load` and `family`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm.demo import CHECKPOINT
from dlm.errors import ConfigError
from dlm.models.sizes import SIZES

if TYPE_CHECKING:
    import torch

    from dlm.models.loading import Checkpoint

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
DEMO = "demo"


class FamilyDefault:
    """Stands for an engine or a sampler that the checkpoint's family decides."""


@dataclass(frozen=True)
class CheckpointSource:
    """A local folder, a hub id with a revision, or `demo`, the bundled checkpoint.

    Attributes:
        path: folder or hub id.
        revision: commit, tag or branch of a hub id; None for a folder.
        dtype: `auto` is the checkpoint's own.
        chat: whether prompts go through the chat template; None: if the tokenizer has one.
    """

    path: str
    revision: str | None = None
    dtype: str = "auto"
    chat: bool | None = None

    def faults(self) -> list[str]:
        """What is wrong without looking at weights, each with its key and remedy."""
        found = _dtype_faults(self.dtype)
        if self.path == DEMO or Path(self.path).expanduser().exists():
            if self.revision is not None:
                found.append(f"model.revision={self.revision}: {self.path} is a local folder; set model.revision=null")
        elif self.path.count("/") != 1 or self.path.startswith((".", "/", "~")):
            found.append(f"model.path={self.path}: no such folder, and no hub id of the form owner/name")
        elif self.revision is None:
            found.append(f"model.revision: {self.path} is a hub id; set a commit, so that the weights cannot change")
        return found

    def folder(self) -> Path:
        """The folder with config, tokenizer and weights; fetched when it is a hub id. Raises `CheckpointError`."""
        if self.path == DEMO:
            return CHECKPOINT
        from dlm.models.loading import resolve_folder

        return resolve_folder(self.path, self.revision)

    def tokenizer_folder(self) -> Path:
        return self.folder()

    def default_algorithm(self) -> str:
        """The family's own, from config.json alone. Raises `CheckpointError`."""
        from dlm.models.loading import read_checkpoint_config

        return read_checkpoint_config(self.folder()).family.default_algorithm

    def load(self, device: torch.device) -> Checkpoint:
        """Weights, straight to `device`. Raises `CheckpointError`."""
        from dlm.models.loading import load_checkpoint

        return load_checkpoint(self.folder(), dtype=self.dtype, device=device)


@dataclass(frozen=True)
class RandomSource:
    """Random weights of a named size; the demo's tokenizer."""

    size: str
    seed: int = 0
    dtype: str = "float32"
    chat: bool | None = None

    def faults(self) -> list[str]:
        """What is wrong, each with its key and remedy."""
        found = _dtype_faults(self.dtype)
        if self.size not in SIZES:
            found.append(f"model.size={self.size}: no such size; choose one of {', '.join(SIZES)}")
        return found

    def tokenizer_folder(self) -> Path:
        return CHECKPOINT

    def default_algorithm(self) -> str:
        from dlm.models.families import LLADA

        return LLADA.default_algorithm

    def load(self, device: torch.device) -> Checkpoint:
        """Weights drawn from the seed, on `device`."""
        from dlm.models.loading import random_checkpoint

        dtype = "float32" if self.dtype == "auto" else self.dtype
        return random_checkpoint(self.size, seed=self.seed, dtype=dtype, device=device)


ModelSource = CheckpointSource | RandomSource


def _dtype_faults(dtype: str) -> list[str]:
    return [] if dtype in DTYPES else [f"model.dtype={dtype}: choose one of {', '.join(DTYPES)}"]


def chosen(kind: str, value: Any, source: ModelSource) -> Any:
    """`value`, or what the family's own algorithm has for `kind` (`engine` or `sampler`) where it was left to it."""
    if not isinstance(value, FamilyDefault):
        return value
    from dlm.decoding.algorithms import resolve
    from dlm.decoding.engines import ENGINES
    from dlm.decoding.samplers import SAMPLERS

    algorithm = resolve(source.default_algorithm())
    if kind == "engine":
        return ENGINES[algorithm.engine]()
    if kind == "sampler":
        return SAMPLERS[algorithm.sampler]()
    raise ConfigError(f"{kind!r} is neither engine nor sampler")
