"""Reads prompts: each has a stable id, and a fault in one row affects only that row.

Does not depend on tokenizers or torch.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

from dlm._quoting import quoted
from dlm.data.prompt_file import Parsed, read_rows, unusable
from dlm.demo import PROMPTS
from dlm.errors import DataError, MissingExtraError

Messages = list[dict[str, str]]

Check = Callable[[dict[str, Any], Any, str], tuple[str, bool] | None]
"""Judges an answer from the input row's fields, the question and the answer's text: returns a group for the table and
whether the answer is correct, or None if it cannot tell. A data set may provide one."""

NAMED = 12
"""Maximum number of a row's fields listed in a message."""


def check_demo_answer(row: dict[str, Any], question: Any, text: str) -> tuple[str, bool] | None:
    """The check for the demo's questions, whose rows name their family."""
    from dlm.demo.tasks import FAMILIES, check

    family = row.get("family")
    if not isinstance(family, str) or family not in FAMILIES or not isinstance(question, str):
        return None
    return family, check(family, question, text)


@dataclass(frozen=True)
class Fault:
    """Why a row cannot be decoded: the error class, and a message that says what to change."""

    type: str
    message: str


@dataclass(frozen=True)
class Prompt:
    """One row of input.

    Attributes:
        id: stable name, the same each time the file is read.
        content: the prompt's text, or chat messages.
        row: the row's other fields, copied to the output.
        fault: why it cannot be decoded; None if it can.
    """

    id: str
    content: str | Messages
    row: dict[str, Any] = field(default_factory=dict)
    fault: Fault | None = None

    @property
    def size(self) -> int:
        """Length of the prompt in characters, to estimate its cost; 0 for a row that will not be decoded."""
        if self.fault is not None:
            return 0
        return len(self.content) if isinstance(self.content, str) else sum(len(m["content"]) for m in self.content)


@dataclass(frozen=True)
class JsonlPrompts:
    """A file with one JSON object per line, or one JSON array of objects."""

    check: ClassVar[Check | None] = None

    path: str
    prompt_field: str = "prompt"
    id_field: str = "id"
    limit: int | None = None
    chat_template: bool | None = None

    def faults(self) -> list[str]:
        """Faults that can be found without reading the file, each with its key and remedy."""
        path = Path(self.path).expanduser()
        if os.path.isfile(path):  # Path raises for names that no file can have
            return []
        what = "a folder, not a file" if os.path.isdir(path) else "no such file"
        if os.path.exists(path) and not os.path.isdir(path):
            what = "a pipe or a device, which cannot be read again on resume; write it to a file"
        return [f"data.path={self.path}: {what}"]

    def read(self, key: str = "data.path") -> list[Prompt]:
        """Read every row. Raises `DataError`, naming the file `key`, if there are none or it cannot be read."""
        rows = read_rows(Path(self.path).expanduser(), key, self.limit)
        return _named(_prompts(rows, self.prompt_field, self.id_field), f"{key}={self.path}")


@dataclass(frozen=True)
class DemoPrompts:
    """The prompts held out from the demo checkpoint's training."""

    check: ClassVar[Check | None] = staticmethod(check_demo_answer)

    limit: int | None = None
    chat_template: bool | None = None

    def faults(self) -> list[str]:
        return []

    def read(self) -> list[Prompt]:
        return JsonlPrompts(str(PROMPTS), limit=self.limit).read()


@dataclass(frozen=True)
class DemoFamilyPrompts:
    """Fresh questions of one of the demo's families.

    Attributes:
        family: family name.
        limit: number of questions.
        seed: selects the questions.
        chat_template: as in the other sources.
    """

    check: ClassVar[Check | None] = staticmethod(check_demo_answer)

    family: str = "split"
    limit: int = 64
    seed: int = 0
    chat_template: bool | None = None

    def faults(self) -> list[str]:
        from dlm.demo.tasks import FAMILIES

        return [] if self.family in FAMILIES else [f"data.family={self.family}: must be one of {', '.join(FAMILIES)}"]

    def read(self) -> list[Prompt]:
        """Read the questions. Raises `ConfigError` if the family has fewer than `limit`."""
        from dlm.demo.tasks import fresh_examples

        examples = enumerate(fresh_examples(self.family, self.seed, self.limit))
        return [Prompt(f"{self.family}-{number}", one.question, {"family": self.family}) for number, one in examples]


@dataclass(frozen=True)
class HfPrompts:
    """A split of a data set, loaded with the package `datasets`."""

    check: ClassVar[Check | None] = None

    path: str
    name: str | None = None
    split: str = "test"
    revision: str | None = None
    prompt_field: str = "prompt"
    id_field: str = "id"
    limit: int | None = None
    chat_template: bool | None = None

    def faults(self) -> list[str]:
        from importlib.util import find_spec

        return [] if find_spec("datasets") else [str(MissingExtraError("datasets", "hf", "data=hf"))]

    def read(self) -> list[Prompt]:
        """Read every row. Raises `DataError` if there are none or the data set cannot be loaded."""
        try:
            from datasets import load_dataset
        except ImportError:
            raise MissingExtraError("datasets", "hf", "data=hf") from None
        try:
            table = load_dataset(self.path, self.name, split=self.split, revision=self.revision)
            found = [dict(row) for row in itertools.islice(table, self.limit)]
        except Exception as error:  # its own errors, the hub's and pyarrow's
            raise DataError(f"data.path={self.path} cannot be loaded: {type(error).__name__}: {error}") from error
        rows = [(f"row-{number}", _plain(row)) for number, row in enumerate(found, 1)]
        return _named(_prompts(rows, self.prompt_field, self.id_field), f"data.path={self.path}")


PromptSource = JsonlPrompts | DemoPrompts | DemoFamilyPrompts | HfPrompts

SOURCES: dict[str, type[PromptSource]] = {
    f"{kind.__module__}.{kind.__qualname__}": kind for kind in (JsonlPrompts, DemoPrompts, DemoFamilyPrompts, HfPrompts)
}
"""The source classes by the `_target_` used in configs."""


def check_of(target: object) -> Check | None:
    """The check provided by the data set with this `_target_`; None if it has none."""
    kind = SOURCES.get(target) if isinstance(target, str) else None
    return None if kind is None else kind.check


def require_prompts(prompts: Sequence[Prompt], what: str = "rows can be decoded") -> None:
    """Raise `DataError` with the first reason if every prompt has a fault."""
    first = prompts[0]
    if first.fault is not None and all(prompt.fault is not None for prompt in prompts):
        raise DataError(f"none of the {len(prompts)} {what}. The first, {quoted(first.id)}: {first.fault.message}")


def digest(prompts: Iterable[Prompt]) -> str:
    """A hash that identifies a list of prompts."""
    total = blake2b(digest_size=16)
    for prompt in prompts:
        total.update(json.dumps([prompt.id, prompt.content, prompt.row], sort_keys=True, default=str).encode())
    return total.hexdigest()


def _plain(value: Any) -> Any:
    """Convert a data set's value to JSON types: no dates, bytes or infinities."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _prompts(rows: Iterable[tuple[str, Parsed]], prompt_field: str, id_field: str) -> Iterator[Prompt]:
    """Turn rows into prompts; `rows` has a name from each row's position, and the parsed row."""
    rows = list(rows)
    taken = {str(row[id_field]) for _, row in rows if isinstance(row, dict) and _is_id(row.get(id_field))}
    seen: set[str] = set()
    for place, parsed in rows:
        row = parsed if isinstance(parsed, dict) else {}
        given, content = row.get(id_field), row.get(prompt_field)
        rest = {key: value for key, value in row.items() if key not in (prompt_field, id_field)}
        reason = parsed if isinstance(parsed, str) else unusable(parsed)
        if reason is None:
            fault = _content_fault(row, prompt_field) or _id_fault(given, id_field)
        else:  # keep nothing of it except a usable id
            fault, content, rest = Fault("DataError", reason), "", {}
            given = given if _is_id(given) and unusable({id_field: given}) is None else None
        if _is_id(given) and str(given) in seen:
            fault = fault or Fault(
                "DataError", f"duplicate {id_field} {quoted(given)}; the first row with it is decoded"
            )
            given = None
        id = str(given) if _is_id(given) else _unused(place, taken)
        seen.add(id)
        yield Prompt(id, content or "" if fault is None else _shown(content), rest, fault)


def _content_fault(row: dict[str, Any], name: str) -> Fault | None:
    if name not in row:
        return Fault("DataError", f"no field {name!r}, only {_names(row)}; see data.prompt_field")
    content = row[name]
    texts = [content]
    if isinstance(content, list):
        if not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in content):
            return Fault("DataError", f'field {name!r} is a list, but not of {{"role", "content"}} messages')
        texts = [message.get("content") for message in content]
    if not all(isinstance(text, str) for text in texts):
        return Fault("DataError", f"field {name!r} is neither text nor a list of messages with text")
    if not any(text.strip() for text in texts):
        return Fault("DataError", f"field {name!r} is empty")
    return None


def _names(row: dict[str, Any]) -> str:
    """The first few field names of a row, for a message."""
    names = [quoted(name) for name in itertools.islice(row, NAMED)]
    return ", ".join([*names, *(["..."] if len(row) > NAMED else [])]) or "none"


def _id_fault(given: Any, name: str) -> Fault | None:
    if given is None or _is_id(given):
        return None
    return Fault("DataError", f"field {name!r} is {quoted(given)}; an id must be text or a whole number")


def _is_id(given: Any) -> bool:
    return isinstance(given, str | int) and not isinstance(given, bool) and str(given) != ""


def _shown(content: Any) -> str:
    return content if isinstance(content, str) else ""


def _unused(place: str, taken: set[str]) -> str:
    """`place`, with a number appended if another row's own id equals it; marks the name as taken."""
    candidates = itertools.chain([place], (f"{place}-{number}" for number in itertools.count(2)))
    name = next(name for name in candidates if name not in taken)
    taken.add(name)
    return name


def _named(prompts: Iterator[Prompt], name: str) -> list[Prompt]:
    found = list(prompts)
    if not found:
        raise DataError(f"{name} holds no prompts")
    return found
