"""As much of Triton as `dlm/decoding/cuda/triton_argmax.py` uses, in plain torch: its very source runs on a CPU.

Numbers have the types that the compiler gives them, `max` passes over nan as Triton's does, and a load or store outside
of a tensor fails.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

SOURCE = Path(__file__).parents[3] / "dlm" / "decoding" / "cuda" / "triton_argmax.py"


@dataclass(frozen=True)
class Pointer:
    """Places in a tensor's memory."""

    memory: Tensor
    at: Tensor

    def __add__(self, offset: Tensor | int) -> Pointer:
        return Pointer(self.memory, self.at + offset)


class Language(ModuleType):
    """`triton.language`."""

    int32, int64, float32, constexpr = torch.int32, torch.int64, torch.float32, int

    def __init__(self) -> None:
        super().__init__("triton.language")
        self.program = 0

    def program_id(self, axis: int) -> Tensor:
        assert axis == 0
        return torch.tensor(self.program, dtype=torch.int32)

    def arange(self, start: int, stop: int) -> Tensor:
        assert (stop - start).bit_count() == 1
        return torch.arange(start, stop, dtype=torch.int32)

    def full(self, shape: list[int], value: float, dtype: torch.dtype) -> Tensor:
        return torch.full(shape, value, dtype=dtype)

    def load(self, pointer: Pointer, mask: Tensor, other: float) -> Tensor:
        inside = pointer.at[mask]
        assert bool((inside >= 0).all() and (inside < pointer.memory.numel()).all())
        loaded = torch.full(mask.shape, other, dtype=pointer.memory.dtype)
        loaded[mask] = pointer.memory.flatten()[inside]
        return loaded

    def store(self, pointer: Pointer, value: Tensor) -> None:
        assert value.dtype == pointer.memory.dtype
        assert value.shape == pointer.at.shape == ()
        pointer.memory[int(pointer.at)] = value

    def max(self, value: Tensor, axis: int) -> Tensor:
        numbers = value[~value.isnan()]
        return numbers.amax(axis) if len(numbers) else torch.tensor(torch.nan)

    def min(self, value: Tensor, axis: int) -> Tensor:
        return value.amin(axis)

    def sum(self, value: Tensor, axis: int) -> Tensor:
        assert value.dtype == torch.float32
        return value.sum(axis)

    def maximum(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.fmax(one, other)

    def exp(self, value: Tensor) -> Tensor:
        assert value.dtype == torch.float32
        return value.exp()

    def where(self, condition: Tensor, one: Any, other: Any) -> Tensor:
        return torch.where(condition, one, other)


def kernel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`triton_argmax`, to be launched as Triton's is: `kernel[grid](...)`."""
    language, triton = Language(), ModuleType("triton")
    triton.language = language  # type: ignore[attr-defined]  # a module is filled so

    class Launched:
        def __init__(self, body: Callable[..., None]) -> None:
            self.body = body

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*given: Any, num_warps: int, **constants: Any) -> None:
                assert num_warps > 0
                for program in range(grid[0]):
                    language.program = program
                    self.body(*(pointer_to(one) for one in given), **constants)

            return launch

    triton.jit = Launched  # type: ignore[attr-defined]  # likewise
    spec = importlib.util.spec_from_file_location("leaders_on_a_cpu", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as while_it_is_read:  # torch looks for the real one later
        while_it_is_read.setitem(sys.modules, "triton", triton)
        while_it_is_read.setitem(sys.modules, "triton.language", language)
        spec.loader.exec_module(module)
    return module.triton_argmax


def pointer_to(given: Any) -> Any:
    """Tensors become pointers to their first number; what is no tensor stays."""
    if not isinstance(given, Tensor):
        return given
    whole = given.untyped_storage().nbytes() // given.element_size()
    return Pointer(given.as_strided((whole,), (1,), 0), torch.tensor(given.storage_offset()))
