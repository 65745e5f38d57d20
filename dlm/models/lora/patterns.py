"""Values by patterns of module names, as PEFT writes them (`rank_pattern`, `alpha_pattern`)."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

import regex

from dlm._quoting import quoted, reason
from dlm.errors import CheckpointError

MAX_PATTERN, MAX_PATTERNS = 512, 2_000

_COSTLY = re.compile(r"\(\?(?!:)|[)}*+?]\s*\{|\{[\d,]{4,}\}")
"""What makes compiling costly: a counted repetition of a group or of another repetition, or a large one. Flags and
look-arounds, which no module name needs, would hide it."""

SECONDS = 1.0
"""All matching of one adapter. Real patterns take microseconds a module; some take for ever."""


class NamePatterns:
    """A number for each module whose name ends with what a pattern matches; the first pattern counts.

    Args:
        values: regular expression -> number.
        label: what messages call them.

    Raises:
        CheckpointError: too many of them, or one that is too long or no regular expression.
    """

    def __init__(self, values: Mapping[str, float], label: str) -> None:
        self._label, self._left = label, SECONDS
        if len(values) > MAX_PATTERNS:
            raise CheckpointError(f"{label} has {len(values)} patterns; at most {MAX_PATTERNS} are read")
        self._values = [(pattern, self._compiled(pattern), value) for pattern, value in values.items()]

    def _compiled(self, pattern: str) -> regex.Pattern[str]:
        if len(pattern) > MAX_PATTERN:
            raise CheckpointError(f"{self._label}: the pattern {quoted(pattern)} has {len(pattern)} characters")
        if _COSTLY.search(pattern):
            raise CheckpointError(
                f"{self._label}: the pattern {quoted(pattern)} repeats too much; write plain module names"
            )
        try:
            return regex.compile(rf"(?:.*\.)?(?:{pattern})")
        except (regex.error, ValueError, RecursionError, OverflowError) as error:
            raise CheckpointError(
                f"{self._label}: the pattern {quoted(pattern)} is no regular expression ({reason(error)})"
            ) from None

    def value(self, module: str, default: float) -> float:
        """The number for a module. `CheckpointError` where a pattern takes too long."""
        for pattern, compiled, value in self._values:
            begun = time.monotonic()
            try:
                fits = compiled.fullmatch(module, timeout=max(self._left, 0.001))
            except TimeoutError:
                raise CheckpointError(
                    f"{self._label}: the pattern {quoted(pattern)} takes too long; write plain module names"
                ) from None
            self._left -= time.monotonic() - begun
            if fits:
                return value
        return default
