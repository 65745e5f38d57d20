"""Where a model comes from: a checkpoint, or random weights. Values first, weights when `load` is called.

Importing this costs nothing; torch comes with `load` and `traits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlm._paths import DEMO_CHECKPOINT
from dlm.errors import CheckpointError, ConfigError
from dlm.models.io import identity
from dlm.models.io.hub import is_hub_id, resolve_folder
from dlm.models.sizes import SIZES, family_of_size

if TYPE_CHECKING:
    import torch

    from dlm.models.architecture import AttentionKind, BackboneConfig
    from dlm.models.families import Family
    from dlm.models.io.loading import Checkpoint
    from dlm.models.io.sources import TensorSource
    from dlm.models.io.weights import ModelTensors

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
DEMO = "demo"


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint by name, with weights of its own or from a distributed checkpoint, with or without an adapter.

    Configuration and tokenizer, and so the chat template and the special ids, come from one folder, whichever way the
    weights come.

    Attributes:
        path: a folder, a hub id, or `demo`, the bundled checkpoint.
        revision: commit, tag or branch of a hub id (`path` or `base_model`); None for a folder.
        dtype: `auto` is the one that config.json names.
        chat: whether prompts go through the chat template; None: if the tokenizer has one.
        dcp_path: folder of torch.distributed.checkpoint whose weights replace those of the checkpoint.
        base_model: with `dcp_path` and without `path`: folder or hub id of configuration and tokenizer alone.
        dcp_prefix: which of several sets of weights in `dcp_path`; None where there is one.
        adapter_path: folder of a LoRA adapter in PEFT's format, merged at load.
        drafter_adapter_path: folder of one for the drafts of `linear_spec` alone, or its name inside the checkpoint.
    """

    path: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    chat: bool | None = None
    dcp_path: str | None = None
    base_model: str | None = None
    dcp_prefix: str | None = None
    adapter_path: str | None = None
    drafter_adapter_path: str | None = None

    def faults(self) -> list[str]:
        """What is wrong without looking at weights, each with its key and remedy."""
        found = _dtype_faults(self.dtype)
        if self.dcp_path is None:
            found += [
                f"model.{key}={value}: has a meaning with model.dcp_path alone; set that too, or leave it out"
                for key, value in (("base_model", self.base_model), ("dcp_prefix", self.dcp_prefix))
                if value is not None
            ]
        elif self.path is not None and self.base_model is not None:
            found.append(
                f"model.path={self.path} and model.base_model={self.base_model}: with model.dcp_path one of them "
                "names configuration and tokenizer; set the other to null"
            )
        found += self._named_faults()
        for key, value in (("dcp_path", self.dcp_path), ("adapter_path", self.adapter_path)):
            if value is not None and not Path(value).expanduser().is_dir():
                found.append(f"model.{key}={value}: no such folder")
        return found + self._drafter_faults()

    def _drafter_faults(self) -> list[str]:
        if self.drafter_adapter_path is None:
            return []
        given, (_, name) = Path(self.drafter_adapter_path).expanduser(), self._named
        inside = DEMO_CHECKPOINT if name == DEMO else Path(name or "").expanduser()
        fetched = name is not None and not inside.exists()  # from the hub, so that nobody knows yet what is inside
        if given.is_dir() or (inside / given).is_dir() or (fetched and not given.is_absolute()):
            return []
        return [f"model.drafter_adapter_path={self.drafter_adapter_path}: no such folder, nor one inside {name}"]

    def _named_faults(self) -> list[str]:
        key, name = self._named
        if name is None and self.dcp_path is not None:
            return ["model.base_model is not set: write model.base_model=<folder or hub id of config and tokenizer>"]
        if name is None:
            return ["model.path is not set: write model.path=<folder or hub id>; with model.dcp_path, model.base_model"]
        if name == DEMO or Path(name).expanduser().exists():
            if self.revision is not None:
                return [f"model.revision={self.revision}: {name} is a local folder; set model.revision=null"]
        elif not is_hub_id(name):
            return [f"{key}={name}: no such folder, and no hub id of the form owner/name"]
        elif self.revision is None:
            return [f"model.revision: {name} is a hub id; set a commit, so that the weights cannot change"]
        return []

    @property
    def _named(self) -> tuple[str, str | None]:
        """The key that names configuration and tokenizer, and its value."""
        if self.path is None and self.dcp_path is not None:
            return "model.base_model", self.base_model
        return "model.path", self.path

    def folder(self) -> Path:
        """The folder with config and tokenizer, and weights unless `dcp_path` has them; fetched when it is a hub id.

        Raises `CheckpointError`.
        """
        key, name = self._named
        if name is None:
            raise ConfigError(f"{key} is not set")
        if name == DEMO:
            return DEMO_CHECKPOINT
        return resolve_folder(name, self.revision, weights=self.dcp_path is None, key=key)

    def tokenizer_folder(self) -> Path:
        return self.folder()

    def identity(self) -> dict[str, str]:
        """Digests of the files that the model is made of, by name. Raises `CheckpointError`."""
        own = identity.CONFIG_FILES if self.dcp_path is not None else (*identity.CONFIG_FILES, *identity.WEIGHT_FILES)
        found = identity.digests(self.folder(), own)
        if self.dcp_path is not None:
            found |= identity.digests(Path(self.dcp_path).expanduser(), identity.DCP_FILES, "dcp_path/")
        for key, folder in (("adapter_path", self._adapter()), ("drafter_adapter_path", self._drafter())):
            if folder is not None:
                found |= identity.digests(folder, identity.ADAPTER_FILES, f"{key}/")
        return found

    def traits(self) -> tuple[Family, AttentionKind]:
        """The family and how its models attend, from config.json alone. Raises `CheckpointError`."""
        from dlm.models.io.loading import read_checkpoint_config

        config = read_checkpoint_config(self.folder())
        return config.family, config.backbone.attention

    def architecture(self) -> tuple[BackboneConfig, torch.dtype]:
        """Shape and dtype of the weights, none of which is read. Raises `CheckpointError`.

        What config.json describes is compared with the files first, so that no memory is planned for a model that they
        do not hold.
        """
        from dlm.models.io.loading import DTYPES as KNOWN
        from dlm.models.io.loading import read_checkpoint_config

        config = read_checkpoint_config(self.folder())
        self.tensors(None)
        dtype = KNOWN.get(config.dtype if self.dtype == "auto" else self.dtype)
        if dtype is None:
            raise CheckpointError(
                f"config.json names the dtype {config.dtype!r}; set dtype to one of {', '.join(KNOWN)}"
            )
        return config.backbone, dtype

    def load(self, device: torch.device) -> Checkpoint:
        """Weights, straight to `device`. Raises `CheckpointError`."""
        from dlm.models.io.loading import load_checkpoint

        return load_checkpoint(
            self.folder(),
            dtype=self.dtype,
            device=device,
            weights=self._source(),
            prefix=self.dcp_prefix,
            adapter=self._adapter(),
            drafter=self._drafter(),
        )

    def drafter_bytes(self) -> int:
        """Memory of the drafter's adapter, from its shapes alone; 0 without one. Raises `CheckpointError`."""
        folder = self._drafter()
        if folder is None:
            return 0
        from dlm.models.lora.drafter import Drafter

        (family, _), (config, dtype) = self.traits(), self.architecture()
        return Drafter.read(folder, family, config).num_bytes(dtype)

    def tensors(self, dtype: torch.dtype | None) -> ModelTensors:
        """The weights as they are stored, or cast to `dtype`, to be read one by one. Raises `CheckpointError`."""
        from dlm.models.io.loading import read_checkpoint_config
        from dlm.models.io.sources import SafetensorsSource
        from dlm.models.io.weights import ModelTensors

        config = read_checkpoint_config(self.folder())
        return ModelTensors.find(
            self._source() or SafetensorsSource(config.folder),
            config.family,
            config.backbone,
            prefix=self.dcp_prefix,
            dtype=dtype,
            adapter=self._adapter(),
        )

    def _source(self) -> TensorSource | None:
        """Where weights come from that are not those of `folder`."""
        if self.dcp_path is None:
            return None
        from dlm.models.io.dcp.folder import DcpSource

        return DcpSource(Path(self.dcp_path).expanduser())

    def _adapter(self) -> Path | None:
        return None if self.adapter_path is None else Path(self.adapter_path).expanduser()

    def _drafter(self) -> Path | None:
        if self.drafter_adapter_path is None:
            return None
        given = Path(self.drafter_adapter_path).expanduser()
        return given if given.is_dir() else self.folder() / given


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
        return DEMO_CHECKPOINT

    def identity(self) -> dict[str, str]:
        """Shape and seed of the weights, and digests of the tokenizer's files."""
        return {"shape": str(SIZES[self.size]), "seed": str(self.seed)} | identity.digests(
            DEMO_CHECKPOINT, identity.CONFIG_FILES
        )

    def traits(self) -> tuple[Family, AttentionKind]:
        """The family of the size and how its models attend."""
        from dlm.models.families import FAMILIES

        name = family_of_size(self.size)
        return next(family for family in FAMILIES if family.name == name), SIZES[self.size].attention

    def architecture(self) -> tuple[BackboneConfig, torch.dtype]:
        """Shape and dtype of the weights."""
        from dlm.models.io.loading import DTYPES as KNOWN

        return SIZES[self.size], KNOWN["float32" if self.dtype == "auto" else self.dtype]

    def drafter_bytes(self) -> int:
        """0: it has no adapter."""
        return 0

    def load(self, device: torch.device) -> Checkpoint:
        """Weights drawn from the seed, on `device`."""
        from dlm.models.io.loading import random_checkpoint

        dtype = "float32" if self.dtype == "auto" else self.dtype
        return random_checkpoint(self.size, seed=self.seed, dtype=dtype, device=device)


ModelSource = CheckpointSource | RandomSource


def _dtype_faults(dtype: str) -> list[str]:
    return [] if dtype in DTYPES else [f"model.dtype={dtype}: choose one of {', '.join(DTYPES)}"]
