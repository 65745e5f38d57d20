"""What differs between model families: how to read their config, how their weights are called, which ids are special.

A family is a value in `FAMILIES`; the first whose architecture a checkpoint's config names is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlm.errors import CheckpointError
from dlm.models.families.base import Family, NamedIds, SpecialTokens, WeightPart
from dlm.models.families.llada import LLADA

__all__ = ["FAMILIES", "LLADA", "Family", "NamedIds", "SpecialTokens", "WeightPart", "family_of"]

FAMILIES: tuple[Family, ...] = (LLADA,)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint's config; `CheckpointError` lists those supported otherwise."""
    named = config.get("architectures") or []
    for family in FAMILIES:
        if any(name in family.architectures for name in named):
            return family
    supported = ", ".join(f"{family.name} ({', '.join(family.architectures)})" for family in FAMILIES)
    raise CheckpointError(f"config.json names architectures={named!r}; supported families: {supported}")
