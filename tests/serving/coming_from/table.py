"""The rows of the table, and the checks that hold them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parents[3] / "docs" / "coming_from.md"

Check = Callable[..., None]
CHECKS: dict[str, Check] = {}
"""By the first cell of a row. A check's parameters are fixtures."""


def row(*cells: str) -> Callable[[Check], Check]:
    """Registers a check of the rows that begin with `cells`."""

    def register(check: Check) -> Check:
        for cell in cells:
            assert cell not in CHECKS, f"two checks of {cell!r}"
            CHECKS[cell] = check
        return check

    return register


def rows() -> list[str]:
    """First cells of the rows, in order."""
    cells = re.findall(r"^\| (.+?) \|", TABLE.read_text(), re.MULTILINE)
    return [cell for cell in cells if cell != "theirs"]


def chat(text: str = "Sort 7 3 12.", **fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"messages": [{"role": "user", "content": text}], **fields}


SORTED = "Sorted: 3 7 12"
"""The demo's answer to it."""
