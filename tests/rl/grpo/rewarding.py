"""Rewards that a user might bring."""

from __future__ import annotations

from typing import Any

NUMBER = 3


def length(row: dict[str, Any], text: str) -> float:
    return float(len(text))


def broken(row: dict[str, Any], text: str) -> float:
    raise KeyError(row["prompt"])


def picky(row: dict[str, Any], text: str) -> float:
    if len(text) % 2:
        raise KeyError(text)
    return float(len(text))


def endless(row: dict[str, Any], text: str) -> float:
    return float("inf")
