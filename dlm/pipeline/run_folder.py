"""The run folder: what was asked (`config.yaml`, `command.txt`, `index.json`), how it is computed (`arithmetic.txt`),
what is answered (`shards/`), who does what (`claims/`), and the result (`predictions.jsonl`, `summary.json`).

Several processes open the same folder at once and none of them talks to another: a file that all must agree on is
published whole or not at all, and whoever comes first wins.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dlm.errors import ConfigError, DataError, RunError

FREE = (
    "trainer", "logger", "decoder", "progress", "run_dir", "trace", "allow_code_execution", "checking", "published",
)  # fmt: skip
"""Parts of the configuration that may differ when a run is resumed: they change no answer."""


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
        plans = (self.path / "claims").glob("*/plan.json")
        created = sorted((json.loads(plan.read_text())["created"], plan.parent.name) for plan in plans)
        return [name for _, name in created]

    def shard_files(self) -> list[Path]:
        """Shards in the order in which their answers count: by attempt, then by name."""
        order = {attempt: number for number, attempt in enumerate(self.attempts())}

        def key(path: Path) -> tuple[int, str]:
            known = [number for attempt, number in order.items() if path.name.startswith(f"{attempt}-")]
            return (max(known, default=len(order)), path.name)

        return sorted(self.shards.glob("*.jsonl"), key=key)

    def create(self, attempt: str | None) -> None:
        """Make the folders; without an attempt, for a run whose processes claim nothing, that of the run alone.

        Raises:
            RunError: the place cannot be written to.
        """
        try:
            for folder in (self.path, *(() if attempt is None else (self.shards, self.claims(attempt)))):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe-{secrets.token_hex(4)}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise RunError(
                f"cannot write to {self.path}: {error.strerror}; choose another place with run_dir=<folder>"
            ) from error

    def agree_on_config(self, config: DictConfig, command: str, free: Sequence[str] = FREE) -> None:
        """Keep `config` with the run, or compare it with what the run was begun with; `free` parts may differ.

        Raises:
            ConfigError: names every key that differs.
        """
        text = OmegaConf.to_yaml(config, resolve=True)
        publish(self.config, text)
        publish(self.path / "command.txt", command + "\n")
        begun = _flat(OmegaConf.to_container(OmegaConf.create(self.config.read_text())))
        asked = _flat(OmegaConf.to_container(OmegaConf.create(text)))
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

    def begun_with(self) -> str:
        """The command that resumes the run."""
        path = self.path / "command.txt"
        return path.read_text().strip() if path.exists() else f"python -m dlm.predict ... run_dir={self.path}"

    def begun_with_arithmetic(self, text: str) -> str:
        """How the first process of the run computed; `text`, which is kept, where this is the first."""
        path = self.path / "arithmetic.txt"
        publish(path, text + "\n")
        return path.read_text().strip()

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
            RunError: the folder holds no run.
        """
        try:
            return Index(**json.loads(self.index.read_text()))
        except FileNotFoundError:
            raise RunError(f"{self.path} holds no run: {self.index.name} is missing there") from None


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


def publish(path: Path, text: str) -> bool:
    """Write a file whole and only if it is not there; True when this call made it.

    A name appears with its content or not at all, whatever is killed and however many try.

    Raises:
        RunError: the place is full or cannot be written to.
    """
    if path.exists():
        return False
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with draft.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; make room, or choose another run_dir") from error
    finally:
        draft.unlink(missing_ok=True)
    return True


def replace(path: Path, lines: Iterator[bytes] | Sequence[bytes]) -> None:
    """Write a file whole in place of whatever was there, and have it on the disk before it gets its name.

    Raises:
        RunError: the place is full or cannot be written to; what was there stays.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with draft.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror}; the shards are kept, make room and merge again"
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """Leaves of nested dicts by dotted path."""
    if not isinstance(node, dict):
        return {path: node}
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves.update(_flat(value, f"{path}.{key}" if path else str(key)))
    return leaves
