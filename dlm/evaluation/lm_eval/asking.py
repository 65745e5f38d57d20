"""What model arguments and a task's `generation_kwargs` ask for. Values only: knows no model, and of lm-eval the names
alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from dlm.decoding.params import check_whole
from dlm.errors import RequestError
from dlm.likelihood.schemes import SCHEMES, LladaMC, Scheme
from dlm.sampling_params import SamplingParams

GEN_LENGTH = 256
"""Canvas of an answer where neither the task nor the model arguments name a length: lm-eval's own default."""

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""lm-eval's names for the tokens of an answer; where a task gives several, the first of these counts, as elsewhere."""

NEUTRAL: Mapping[str, Any] = {"num_beams": 1}
"""What tasks write for other models; these values change nothing here."""

NOT_NAMED = ("seed", "stop", "max_tokens", "n", "record")
"""Fields of `SamplingParams` that a task asks for by other names, or not at all."""

SAMPLING = tuple(one.name for one in fields(SamplingParams) if one.name not in NOT_NAMED)
"""Fields that model arguments and `generation_kwargs` set by their own names."""


@dataclass(frozen=True)
class Settings:
    """How a model answers every task.

    Attributes:
        scheme: how likelihoods are estimated, a name in `dlm.likelihood.SCHEMES`.
        mc_num: draws of `llada_mc`, from 1; None is 128, and all that other schemes take.
        seed: of the masks and, with a prompt's text, of the noise of its answers.
        check_greedy: find out whether greedy decoding gives the continuation (see `greedy_values`), which costs a
            forward a token, and nothing with `ar`. False: `is_greedy` is False, as in LLaDA's program with
            `is_check_greedy=False`.
        sampling: fields of `SamplingParams` for answers whose task does not set them.

    Raises:
        RequestError: names the wrong value and its range.
    """

    scheme: str = LladaMC.name
    mc_num: int | None = None
    seed: int = 0
    check_greedy: bool = True
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise RequestError(f"scheme={self.scheme!r} is unknown; known: {', '.join(SCHEMES)}")
        if self.mc_num is not None and self.scheme != LladaMC.name:
            raise RequestError(f"mc_num={self.mc_num} goes with scheme={LladaMC.name} alone; leave it out")
        if not isinstance(self.check_greedy, bool):
            raise RequestError(f"check_greedy={self.check_greedy!r} must be True or False")
        check_whole("seed", self.seed, 0, 2**63 - 1)
        self.estimator()
        SamplingParams(**self.sampling)

    @classmethod
    def split(cls, arguments: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
        """The settings among model arguments, and the arguments that are left. Raises as the class does."""
        own = {one.name for one in fields(cls)} - {"sampling"}
        given = {name: value for name, value in arguments.items() if name in own}
        sampling = {name: value for name, value in arguments.items() if name in SAMPLING}
        rest = {name: value for name, value in arguments.items() if name not in own and name not in SAMPLING}
        return cls(**given, sampling=sampling), rest

    def estimator(self) -> Scheme:
        """The scheme with its draws."""
        return SCHEMES[self.scheme]() if self.mc_num is None else LladaMC(self.mc_num)

    def generation(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of `SamplingParams` for an answer, but `seed` and `n`.

        What a task names goes before the model arguments. `do_sample=False` is temperature 0, and without any
        temperature it is 0 too. The canvas is `gen_length`; without one it is as long as the answer may be.

        Args:
            kwargs: a task's `generation_kwargs`, changed by `--gen_kwargs`: `until`, one of `LIMITS`, `do_sample`, and
                fields of `SamplingParams`.

        Raises:
            RequestError: a value out of range, or a name that means nothing here.
        """
        given = dict(kwargs)
        until = given.pop("until", None) or ()
        limits = [given.pop(name) for name in LIMITS if name in given]
        limit = next((int(value) for value in limits if value is not None), None)
        sampled = given.pop("do_sample", None)
        for name, value in NEUTRAL.items():
            if given.get(name, value) == value:
                given.pop(name, None)
        unknown = [f"{name}={value!r}" for name, value in given.items() if name not in SAMPLING]
        if unknown:
            raise RequestError(
                f"generation_kwargs: {', '.join(unknown)} cannot be honoured; known are until, do_sample, "
                f"{', '.join(LIMITS)} and the fields of dlm.SamplingParams"
            )
        values = {"temperature": 0.0, "gen_length": limit or GEN_LENGTH, **self.sampling, **given}
        if sampled is False:
            values["temperature"] = 0.0
        if limit is not None:
            values["max_tokens"] = limit
        strings = [until] if isinstance(until, str) else list(until)
        values["stop"] = [text for text in strings if text != ""]
        SamplingParams(**values)
        return values


def greedy_values(length: int, algorithms: Sequence[str]) -> dict[str, Any]:
    """Fields of `SamplingParams` for the greedy decoding of `length` tokens, one a forward.

    A canvas as long as the continuation, in one block, without a cache, the most confident token first: that of LLaDA's
    evaluation program. Models with blocks decode theirs one after the other, from left to right. Dream's program does
    not decode greedily at all; here its models do as LLaDA's.

    Args:
        length: tokens of the continuation.
        algorithms: names of those that the model runs.
    """
    values = {"gen_length": length, "temperature": 0.0}
    if "basic" in algorithms:
        return {**values, "algorithm": "basic", "block_length": length, "steps": length}
    return {**values, "algorithm": "ar"}
