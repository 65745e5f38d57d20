"""With `deterministic` a request has the same bits in every batch, in bfloat16 on a GPU; without, it is told how many
have not."""

from __future__ import annotations

from typing import Any

import pytest

from dlm.decoding.engines import BlockCausal, DualCache
from dlm.decoding.samplers import LLaDA2, Threshold
from tests.gpu import ON_CUDA
from tests.gpu.asking import asked, decoder_of, model_on_cuda

pytestmark = ON_CUDA

PAIRS: list[Any] = [
    pytest.param("small", DualCache(), Threshold(0.3), id="dense"),
    pytest.param("57m", DualCache(), Threshold(0.3), id="wide"),
    pytest.param("tiny_moe", DualCache(), Threshold(0.3), id="experts"),
    pytest.param("tiny_llada2", BlockCausal(), LLaDA2(0.3), id="block_causal"),
]


def answers(size: str, engine: Any, sampler: Any, num_seqs: int, **options: Any) -> dict[str, object]:
    decoder = decoder_of(model_on_cuda(size), max_num_seqs=num_seqs, **options)
    completions = decoder.run(asked(12, engine, sampler, temperature=0.7))
    return {one.request_id: (one.canvas_ids, str(one.logprobs)) for one in completions}


@pytest.mark.parametrize(("size", "engine", "sampler"), PAIRS)
def test_the_same_bits_in_every_batch(size: str, engine: Any, sampler: Any) -> None:
    alone = answers(size, engine, sampler, 1, deterministic=True)
    for num_seqs in (5, 12):
        assert answers(size, engine, sampler, num_seqs, deterministic=True) == alone


def test_without_it_what_differs_is_told() -> None:
    alone, together = (answers("small", DualCache(), Threshold(0.3), num_seqs) for num_seqs in (1, 12))
    differing = sum(alone[name] != together[name] for name in alone)
    print(f"bfloat16 without deterministic: {differing} of {len(alone)} answers differ in some bit")
    assert alone.keys() == together.keys()
