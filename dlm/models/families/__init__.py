"""What differs between model families: how to read their config, how their weights are called, which ids are special.

A family is a value in `FAMILIES`; the first whose architecture a checkpoint's config names is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlm._quoting import quoted
from dlm.errors import CheckpointError
from dlm.models.families.base import Family, NamedIds, SpecialTokens, WeightPart
from dlm.models.families.dream import DREAM
from dlm.models.families.llada import LLADA
from dlm.models.families.llada2 import LLADA2
from dlm.models.families.llada_moe import LLADA_MOE
from dlm.models.families.nemotron import NEMOTRON
from dlm.models.families.sdar import SDAR

__all__ = [
    "DREAM", "FAMILIES", "LLADA", "LLADA2", "LLADA_MOE", "NEMOTRON", "SDAR", "Family", "NamedIds", "SpecialTokens",
    "WeightPart", "family_of",
]  # fmt: skip

FAMILIES: tuple[Family, ...] = (LLADA, LLADA_MOE, LLADA2, DREAM, SDAR, NEMOTRON)


def family_of(config: Mapping[str, Any], file: object = "config.json") -> Family:
    """The family of a checkpoint's config; `CheckpointError` lists those supported otherwise."""
    named = config.get("architectures")
    for family in FAMILIES:
        if isinstance(named, list) and any(name in family.architectures for name in named):
            return family
    supported = ", ".join(f"{family.name} ({', '.join(family.architectures)})" for family in FAMILIES)
    raise CheckpointError(f"{file} names architectures={quoted(named)}; supported families: {supported}")
