"""How often a step waits for the device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from dlm.decoding.engines import DualCache, PrefixCache, Smooth
from dlm.decoding.samplers import Credit, Fixed, Threshold
from dlm.models.devices import upload
from tests.gpu import CUDA, ON_CUDA
from tests.gpu.asking import asked, decoder_of, model_on_cuda

pytestmark = ON_CUDA


@contextmanager
def counting_waits() -> Iterator[list[str]]:
    """The operations inside for which the host waited for the device: torch can warn of them."""
    waits: list[str] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits += [str(one.message) for one in told if "synchronizing" in str(one.message)]


def test_an_upload_does_not_wait() -> None:
    for numbers in (np.arange(100_000), np.linspace(0, 1, 1000, dtype=np.float32)):
        with counting_waits() as waits:
            there = upload(numbers, CUDA)
        assert waits == []
        with counting_waits() as waits:
            back = there.cpu()
        assert len(waits) == 1
        assert np.array_equal(back.numpy(), numbers)


@pytest.mark.parametrize(
    ("engine", "sampler", "most"),
    [
        (DualCache(), Fixed(), 1),
        (PrefixCache(), Threshold(0.3), 1),
        (Smooth(DualCache()), Threshold(0.3), 1),
        (DualCache(), Credit(0.3), 2),  # proposals, and again with boosted logits
    ],
    ids=["fixed", "threshold", "smooth", "credit"],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_step_waits_once(engine: Any, sampler: Any, most: int, dtype: str) -> None:
    """The proposals come back in one transfer; no other operation waits. A step in which a mask id was proposed for
    every position asks once more."""
    decoder = decoder_of(model_on_cuda("small", dtype), max_num_seqs=4, enforce_eager=True)
    for request in asked(4, engine, sampler):
        decoder.add(request)
    decoder.step()  # makes the arena and loads kernels
    waits = []
    while decoder.has_work:
        with counting_waits() as mine:
            decoder.step()
        waits.append(len(mine))
    print(f"waits a step: {sorted(set(waits))}, mean {sum(waits) / len(waits):.2f}")
    assert sorted(waits)[len(waits) // 2] <= most
    assert max(waits) <= most + 1
