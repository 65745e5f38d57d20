"""Overrides as they are typed: which of them Hydra cannot read, and what to write instead.

Hydra's grammar gives a meaning to many characters that stand in paths and texts. A value in double quotes is taken as
it is; the shell takes one pair of quotes away, so that two are typed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from dlm._quoting import quoted
from dlm.errors import ConfigError

KEY = re.compile(r"(?:\+{1,2}|~)?[A-Za-z_$][\w$@:./-]*", re.ASCII)
SEVERAL = "a comma separates the values of a sweep, which are for -m alone"


def check_overrides(overrides: Sequence[str], sweeps: bool) -> None:
    """Refuse what Hydra cannot read.

    Args:
        overrides: as they were typed.
        sweeps: several values for a key are welcome (`-m`).

    Raises:
        ConfigError: names each of them, with what to write.
    """
    parser = OverridesParser.create()
    faults = []
    for override in overrides:
        reason = _fault(parser, override, sweeps)
        if reason is not None:
            faults.append(f"{quoted(override)} {reason}{_remedy(parser, override)}")
    if faults:
        raise ConfigError("; ".join(faults))


def _fault(parser: OverridesParser, override: str, sweeps: bool) -> str | None:
    """Why one override cannot be used; None where it can."""
    key, equals, _ = override.partition("=")
    if not override.isascii():
        try:
            override.encode()
        except UnicodeEncodeError:
            return "is not UTF-8; rename the file, or set the terminal's encoding (LC_ALL=C.UTF-8)"
    if not equals and not override.startswith("~"):
        return "is no key=value: everything is set as key=value; see --help"
    if not KEY.fullmatch(key):
        return f"cannot be read: {quoted(key)} is no key; see --help"
    parsed = _parsed(parser, override)
    if isinstance(parsed, str):
        return f"cannot be read ({parsed})"
    if parsed.is_sweep_override() and not sweeps:
        return f"has several values: {SEVERAL}"
    return None


def _parsed(parser: OverridesParser, override: str) -> Override | str:
    """What Hydra makes of an override, or what it says against it."""
    try:
        found = parser.parse_rule(override, "override")
    except HydraException as error:
        return _plain(str(error))
    except RecursionError:
        return "it is nested too deeply"
    return found if isinstance(found, Override) else "it is no override"


def _plain(message: str) -> str:
    """The first line of Hydra's message, without what only its own developers need."""
    first = message.strip().partition("\n")[0] or "it is not in Hydra's grammar"
    return first if len(first) <= 80 else f"{first[:80]}..."


def _remedy(parser: OverridesParser, override: str) -> str:
    """How to write an override so that its value is taken as it was typed; empty where there is no way."""
    key, equals, value = override.partition("=")
    if not equals or not KEY.fullmatch(key) or not override.isprintable():
        return ""
    for text, wanted in _spellings(value):
        parsed = _parsed(parser, f"{key}={text}")
        if not isinstance(parsed, str) and not parsed.is_sweep_override() and parsed.value() == wanted:
            return f"; write {shlex.quote(f'{key}={text}')}"
    return ""


def _spellings(value: str) -> Iterator[tuple[str, Any]]:
    """Ways to write a value, each with what it should be read as: a list of texts, else one text."""
    inside = re.fullmatch(r"\[(.*)\]", value)
    if inside is not None:
        elements = [_bare(one.strip()) for one in inside[1].split(",")]
        yield "[" + ",".join(map(_quoted, elements)) + "]", elements
    yield _quoted(value), value


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.double).with_quotes()


def _bare(text: str) -> str:
    """A text without the quotes around it, if there are any."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
