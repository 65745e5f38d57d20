"""The rotary embedding as a config.json describes it: at the top level, in `rope_scaling` or in `rope_parameters`.

transformers 5 moves all of it into `rope_parameters`, and may leave a default of the class at the top level; earlier
files have `rope_theta` there and the rest, if any, in `rope_scaling`. What is nested therefore goes before what is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dlm._quoting import named, quoted
from dlm.models.architecture import BackboneConfig, YarnConfig
from dlm.models.families.common import POSITIONS, ROTARY_TABLE
from dlm.models.families.keys import Key, Kind, Only, Real, Relation, Schema, Values, lacking

THETA = Real(1.001, 1e12)
WHOLE = Only(1)
"""All dimensions of a head are rotated."""

YARN_ALONE = "it has a meaning with rope_type 'yarn' alone"


class RopeTable(Kind):
    """The object that `rope_parameters` and `rope_scaling` hold: plain (`default`) or stretched (`yarn`).

    Args:
        partial: values of `partial_rotary_factor`.
        scaled_queries: whether queries are scaled by position, with `llama_4_scaling_beta`; such models are stretched.
    """

    def __init__(self, partial: Kind, scaled_queries: bool) -> None:
        shared = (Key("rope_theta", THETA, optional=True), Key("partial_rotary_factor", partial, optional=True))
        yarn: tuple[Key, ...] = (
            Key("factor", Real(1e-3, 1e4), nullable=True),
            Key("original_max_position_embeddings", POSITIONS, optional=True),
            Key("beta_fast", Real(1e-3, 1e4), optional=True, default=32.0),
            Key("beta_slow", Real(1e-3, 1e4), optional=True, default=1.0),
            Key("mscale", Real(0, 100), optional=True),
            Key("mscale_all_dim", Real(0, 100), optional=True),
            Key("truncate", Only(True), optional=True),
        )
        if scaled_queries:
            yarn += (Key("llama_4_scaling_beta", Real(0, 100)),)
        names = frozenset({"rope_type", "type"})
        factor = {"attention_factor": "cosines are scaled by what factor and mscale make"}
        stretched = Schema((*shared, *yarn), names, factor, "rotary embeddings of type yarn")
        others = dict.fromkeys((*(key.name for key in yarn), *factor), YARN_ALONE)
        plain = Schema(shared, names, others, "rotary embeddings of type default")
        self.schemas = {"yarn": stretched} if scaled_queries else {"default": plain, "yarn": stretched}

    @property
    def expected(self) -> str:
        return "an object with rope_type and rope_theta"

    def accepts(self, value: object) -> bool:
        return not self.faults("", value)

    def faults(self, name: str, value: object) -> list[str]:
        if not isinstance(value, dict):
            return [f"{name}={quoted(value)} must be {self.expected}"]
        given = [value[key] for key in ("rope_type", "type") if value.get(key) is not None]
        if len(given) > 1 and given[0] != given[1]:
            return [f"{name}.rope_type={quoted(given[0])} and {name}.type={quoted(given[1])} must be the same"]
        kind = given[0] if given else "default"
        if not isinstance(kind, str) or kind not in self.schemas:
            return [f"{name}.rope_type={quoted(kind)} must be {' or '.join(map(repr, self.schemas))}"]
        values, faults = self.schemas[kind].read(value, f"{name}.")
        if not faults and kind == "yarn" and values["beta_fast"] < values["beta_slow"]:
            faults.append(
                f"{name}.beta_fast={values['beta_fast']:g} must be at least beta_slow={values['beta_slow']:g}"
            )
        return faults

    def convert(self, value: Any) -> dict[str, Any]:
        """The values, with the kind as `rope_type` and defaults in the place of what is left out."""
        kind = value.get("rope_type") or value.get("type") or "default"
        return {"rope_type": kind, **self.schemas[kind].read(value)[0]}


def rope_keys(partial: Kind = WHOLE, *, scaled_queries: bool = False) -> tuple[Key, ...]:
    """The keys that describe the rotary embedding (see `RopeTable`); with `scaled_queries`, `rope_parameters` must be
    there."""
    table = RopeTable(partial, scaled_queries)
    return (
        Key("rope_theta", THETA, optional=True),
        Key("partial_rotary_factor", partial, optional=True),
        Key("rope_scaling", table, optional=True),
        Key("rope_parameters", table, optional=not scaled_queries),
    )


ROPE_KEYS = ("rope_theta", "partial_rotary_factor", "rope_scaling", "rope_parameters")


def rope_stated() -> Relation:
    """The base is somewhere, and `rope_scaling` and `rope_parameters`, where both are there, say the same."""

    def check(values: Values) -> Iterator[str]:
        older, newer = values["rope_scaling"], values["rope_parameters"]
        if older is not None and newer is not None:
            both = [key for key in older.keys() & newer.keys() if older[key] is not None and newer[key] is not None]
            for key in sorted(key for key in both if older[key] != newer[key]):
                old, new = quoted(older[key]), quoted(newer[key])
                yield f"rope_scaling.{named(key)}={old} and rope_parameters.{named(key)}={new} must be the same"
        if _first(values, "rope_theta") is None:
            yield lacking(["rope_theta"])

    return Relation(ROPE_KEYS, check)


def rope_theta(values: Values) -> float:
    """Base of the frequencies, of values for which `rope_stated` holds."""
    theta = _first(values, "rope_theta")
    assert theta is not None  # `rope_stated` has looked
    return theta


def rotated_part(values: Values) -> float | None:
    """The part of a head's dimensions that is rotated; None where the file does not say."""
    return _first(values, "partial_rotary_factor")


def stretching(values: Values, positions: int) -> YarnConfig | None:
    """The stretching of the embedding of a model with so many positions; None where there is none."""
    tables = [values[name] for name in ("rope_parameters", "rope_scaling") if values[name] is not None]
    return next((_yarn(table, positions) for table in tables if table["rope_type"] == "yarn"), None)


def _first(values: Values, key: str) -> float | None:
    """A number from the first of the places in which it may stand."""
    for name in ("rope_parameters", "rope_scaling"):
        if values[name] is not None and values[name][key] is not None:
            return float(values[name][key])
    value: float | None = values[key]
    return value


def _yarn(table: Mapping[str, Any], positions: int) -> YarnConfig:
    """A table of type yarn. As in transformers, a factor of null is the ratio of the context lengths, and both mscales
    count or neither: the cosines then grow with the factor alone."""
    original = table["original_max_position_embeddings"] or positions
    scales = (table["mscale"], table["mscale_all_dim"])
    mscale, mscale_all_dim = scales if all(scales) else (1.0, 0.0)
    return YarnConfig(
        factor=positions / original if table["factor"] is None else table["factor"],
        original_positions=original,
        beta_fast=table["beta_fast"],
        beta_slow=table["beta_slow"],
        mscale=mscale,
        mscale_all_dim=mscale_all_dim,
        query_beta=table.get("llama_4_scaling_beta", 0.0),
    )


def rotary_faults(dim: int, of: str, positions: str, values: Values) -> Iterator[str]:
    """What is wrong with rotating `dim` dimensions of a head, which `of` says where they are from."""
    if dim < 2 or dim % 2:
        yield f"{of} make {dim} rotated dimensions of a head; it must be an even number"
    elif dim * values[positions] > ROTARY_TABLE:
        yield f"{positions}={values[positions]} times {dim} rotated dimensions must be at most {ROTARY_TABLE}"


def write_rope(config: BackboneConfig) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, as programs of every age read them."""
    yarn = config.yarn
    if yarn is None:
        return {"rope_theta": config.rope_theta, "rope_scaling": None}
    return {"rope_theta": config.rope_theta, "rope_scaling": write_yarn(yarn)}


def write_yarn(yarn: YarnConfig) -> dict[str, Any]:
    """The object that describes the stretching."""
    table: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_positions,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
    }
    if yarn.mscale_all_dim:
        table |= {"mscale": yarn.mscale, "mscale_all_dim": yarn.mscale_all_dim}
    return table
