"""Rows of shards as a run writes them."""

from __future__ import annotations

from typing import Any


def row(id: str, **more: Any) -> dict[str, Any]:
    """A row with an answer."""
    return {"id": id, "prompt": "?", "text": "!", "token_ids": [], "nfe": 1, **more}


def refused(id: str, message: str = "too long") -> dict[str, Any]:
    """A row that says why there is no answer."""
    return {"id": id, "prompt": "?", "error": {"type": "RequestError", "message": message}}
