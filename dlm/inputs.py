"""What the arguments of `LLM` and `LLM.generate` must be, apart from the ranges of sampling parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch

from dlm.decoding.params import check_real, check_whole
from dlm.errors import ConfigError, RequestError

Prompt = str | Sequence[int]


def check_numbers(gpu_memory_utilization: float, **whole: int | None) -> None:
    """Raise `ConfigError` unless the share is in (0, 1] and the others are whole numbers; `max_model_len` may be
    None."""
    try:
        check_real("gpu_memory_utilization", gpu_memory_utilization, 0.0, 1.0, open_low=True)
        for name, value in whole.items():
            if name != "max_model_len" or value is not None:
                check_whole(name, value, 1)
    except RequestError as error:
        raise ConfigError(str(error)) from error


def choose_device(device: str | torch.device) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one. Raises `ConfigError`."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device={device!r} is no device; use auto, cpu, cuda or cuda:<number>") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={device!r}: models run on cpu and cuda")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={device!r}: {torch.cuda.device_count()} CUDA devices are here; use device='cpu'")
    return chosen


def prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """The prompts of a call; a single text or list of token ids is a list of one. Raises `TypeError`."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise TypeError(f"prompts must be a list of texts or of token ids, not {type(prompts).__name__}")
    if prompts and all(_is_token(one) for one in prompts):
        return [prompts]  # type: ignore[list-item]  # a single list of token ids
    for index, prompt in enumerate(prompts):
        tokens = isinstance(prompt, Sequence) and not isinstance(prompt, bytes) and all(map(_is_token, prompt))
        if not isinstance(prompt, str) and not tokens:
            raise TypeError(f"prompts[{index}] must be a text or a list of token ids, not {prompt!r:.80}")
    return list(prompts)  # type: ignore[arg-type]  # checked above


def _is_token(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def one_each(name: str, given: Any, kind: type[Any], count: int, *, optional: bool = False) -> list[Any]:
    """`given`, one value of `kind` or a list of them, for each of `count` prompts; None is a value where `optional`.

    Raises `TypeError`, and `RequestError` when the lengths differ.
    """
    if isinstance(given, kind) or (optional and given is None):
        return [given] * count
    if not isinstance(given, Sequence):
        raise TypeError(f"{name} must be one dlm.{kind.__name__} or a list of them, not {given!r:.80}")
    if len(given) != count:
        raise RequestError(f"{len(given)} {name} for {count} prompts; give one for all, or one for each")
    for index, value in enumerate(given):
        if not isinstance(value, kind) and not (optional and value is None):
            raise TypeError(f"{name}[{index}] must be a dlm.{kind.__name__}, not {value!r:.80}")
    return list(given)


def as_arguments(text: str) -> str:
    """A message about configuration keys with the names of the arguments of `LLM`."""
    return re.sub(r"\bmodel\.(path|revision|dtype)\b", lambda key: {"path": "model"}.get(key[1], key[1]), text)
