"""The run folder: what was asked (`config.yaml`, `command.txt`, `index.json`), how it is computed (`arithmetic.txt`),
what is answered (`shards/`), who does what (`claims/`), and the result (`predictions.jsonl`, `summary.json`).

Several processes open the same folder at once and none of them talks to another: a file that all must agree on is
published whole or not at all, and whoever comes first wins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dlm._quoting import quoted
from dlm.errors import CheckpointError, ConfigError, DataError, RunError
from dlm.runs.whole_files import publish, remove_drafts, replace, try_to_write

FREE = (
    "trainer", "logger", "decoder", "progress", "run_dir", "trace", "allow_code_execution", "checking", "published",
)  # fmt: skip
"""Parts of the configuration that may differ when a run is resumed: they change no answer."""
REASON = 200
"""Characters of a message that tell why a file is damaged."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def index(self) -> Path:
        return self.path / "index.json"

    @property
    def model(self) -> Path:
        """What tells the model from others."""
        return self.path / "model.json"

    @property
    def shards(self) -> Path:
        return self.path / "shards"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def results(self) -> Path:
        """What an evaluation says of each prediction."""
        return self.path / "results.jsonl"

    @property
    def trace(self) -> Path:
        return self.path / "trace.html"

    def claims(self, attempt: str) -> Path:
        return self.path / "claims" / attempt

    def attempts(self) -> list[str]:
        """Attempts that have a plan, oldest first."""
        created = [(_created(plan), plan.parent.name) for plan in (self.path / "claims").glob("*/plan.json")]
        return [name for when, name in sorted(created) if when]

    def shard_files(self) -> list[Path]:
        """Shards in the order in which their answers count: by attempt, then by name."""
        order = {attempt: number for number, attempt in enumerate(self.attempts())}

        def key(path: Path) -> tuple[int, str]:
            known = [number for attempt, number in order.items() if path.name.startswith(f"{attempt}-")]
            return (max(known, default=len(order)), path.name)

        return sorted(filter(Path.is_file, self.shards.glob("*.jsonl")), key=key)

    def create(self, attempt: str | None) -> None:
        """Make the folders, and clear what killed processes have left half written; without an attempt, for a run whose
        processes claim nothing, the folder of the run alone.

        Raises:
            RunError: the place cannot be written to.
        """
        try:
            for folder in (self.path, *(() if attempt is None else (self.shards, self.claims(attempt)))):
                folder.mkdir(parents=True, exist_ok=True)
            try_to_write(self.path)
            for folder in (self.path, *self.path.glob("claims/*/")):
                remove_drafts(folder)
        except OSError as error:
            raise RunError(
                f"cannot write to {self.path}: {error.strerror}; choose another place with run_dir=<folder>"
            ) from error

    def agree_on_config(self, config: DictConfig, command: str, free: Sequence[str] = FREE) -> None:
        """Keep `config` with the run, or compare it with what the run was begun with; `free` parts may differ.

        Raises:
            ConfigError: names every key that differs.
            RunError: what is kept is damaged.
        """
        text = OmegaConf.to_yaml(config, resolve=True)
        publish(self.config, text)
        publish(self.path / "command.txt", command + "\n")
        begun = _flat(self._begun_config())
        asked = _flat(OmegaConf.to_container(OmegaConf.create(text)))
        cut = {key.split(".")[0] for key in asked} - {key.split(".")[0] for key in begun}
        if cut:
            raise damaged(self.config, f"it lacks {', '.join(sorted(cut))}, as if it had been cut")
        different = [
            f"{key}: begun with {begun.get(key)!r}, now {asked.get(key)!r}"
            for key in sorted(begun.keys() | asked.keys())
            if key not in free and key.split(".")[0] not in free and begun.get(key) != asked.get(key)
        ]
        if different:
            raise ConfigError(
                f"{self.path} holds another run; give it the same configuration, or another run_dir. Different are\n  "
                + "\n  ".join(different)
            )

    def _begun_config(self) -> Any:
        """The configuration that the run was begun with. Raises `RunError` where it is damaged."""
        try:
            found = OmegaConf.to_container(OmegaConf.create(self.config.read_text(encoding="utf-8")))
        except Exception as error:  # yaml's, omegaconf's and the decoder's kinds
            raise damaged(self.config, error) from error
        if not isinstance(found, dict):
            raise damaged(self.config, "it holds no configuration")
        return found

    def data_target(self) -> object:
        """What kind of data set the run reads, by its `_target_`; None where its configuration does not say."""
        try:
            data = self._begun_config().get("data")
        except RunError:
            return None
        return data.get("_target_") if isinstance(data, dict) else None

    def agree_on_model(self, identity: Mapping[str, str], begun: bool) -> None:
        """Keep what tells the model from others with the run, or compare it with that of the run.

        Args:
            identity: of `ModelSource.identity`.
            begun: the run has answers, so that another model may not go on with it.

        Raises:
            CheckpointError: names every file that differs.
        """
        if not begun:
            replace(self.model, [json.dumps(identity, indent=2).encode() + b"\n"])
            return
        publish(self.model, json.dumps(identity, indent=2) + "\n")
        kept = read_json(self.model)
        if not isinstance(kept, dict):
            raise damaged(self.model, "it names no files")
        different = [
            f"{name}: " + ("was not there" if name not in kept else "changed" if name in identity else "is gone")
            for name in sorted(kept.keys() | identity.keys())
            if kept.get(name) != identity.get(name)
        ]
        if different:
            raise CheckpointError(
                f"{self.path} holds answers of another model; give it the model that it was begun with, or another "
                "run_dir. Different are\n  " + "\n  ".join(different)
            )

    def begun_with(self) -> str:
        """The command that resumes the run."""
        path = self.path / "command.txt"
        text = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
        return text or f"python -m dlm.predict ... run_dir={self.path}"

    def begun_with_arithmetic(self, text: str) -> str:
        """How the first process of the run computed; `text`, which is kept, where this is the first."""
        path = self.path / "arithmetic.txt"
        publish(path, text + "\n")
        return path.read_text(encoding="utf-8", errors="replace").strip()

    def agree_on_index(self, index: Index) -> None:
        """Keep the list of prompts with the run, or compare it with what the run was begun with.

        Raises:
            DataError: the prompts have changed.
        """
        publish(self.index, json.dumps(index.__dict__))
        begun = self.read_index()
        if begun != index:
            raise DataError(
                f"the prompts are not those that {self.path} was begun with ({len(begun.ids)} then, {len(index.ids)} "
                "now): restore the file, or use another run_dir"
            )

    def read_index(self) -> Index:
        """The run's prompts.

        Raises:
            RunError: the folder holds no run, or a damaged one.
        """
        try:
            found = read_json(self.index)
        except FileNotFoundError:
            raise RunError(f"{self.path} holds no run: {self.index.name} is missing there") from None
        try:
            index = Index(**found)
        except TypeError as error:
            raise damaged(self.index, error) from error
        index.check(self.index)
        return index


@dataclass(frozen=True)
class Index:
    """The prompts of a run, in input order.

    Attributes:
        ids: stable ids, all different.
        samples: answers to each.
        digest: of ids and texts.
    """

    ids: list[str]
    samples: int
    digest: str

    def check(self, path: Path) -> None:
        """Raise `RunError` unless it is what a run has written to `path`."""
        ids = self.ids
        if not isinstance(ids, list) or not all(isinstance(id, str) for id in ids) or len(set(ids)) != len(ids):
            raise damaged(path, "ids are no list of different texts")
        if not isinstance(self.samples, int) or self.samples < 1 or not isinstance(self.digest, str):
            raise damaged(path, f"samples={quoted(self.samples)}, digest={quoted(self.digest)}")


def read_json(path: Path) -> Any:
    """What a file of the run folder holds.

    Raises:
        FileNotFoundError: it is not there.
        RunError: it is damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, reason: object) -> RunError:
    """The error for a file of a run folder that no run has written like that."""
    said = str(reason).partition("\n")[0][:REASON]
    if isinstance(reason, Exception):
        said = f"{type(reason).__name__}: {said}" if said else type(reason).__name__
    return RunError(
        f"{path} is damaged ({said}): delete it and start the run again, which writes it anew; answers are kept"
    )


def _created(plan: Path) -> int:
    """When an attempt made its plan; 0 where the plan is damaged."""
    try:
        found = read_json(plan)
    except (FileNotFoundError, RunError):
        return 0
    created = found.get("created") if isinstance(found, dict) else None
    return created if isinstance(created, int) else 0


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """Leaves of nested dicts by dotted path."""
    if not isinstance(node, dict):
        return {path: node}
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves.update(_flat(value, f"{path}.{key}" if path else str(key)))
    return leaves
