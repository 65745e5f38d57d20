"""One decoder over two processes gives what one process gives; and what happens when a process is gone."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

import pytest
import torch

from dlm.decoding.algorithms import compose
from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import Full, Sparse
from dlm.decoding.options import DecoderOptions
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Completion, Request
from dlm.decoding.samplers import Fixed
from dlm.decoding.tensor_parallel.decoder import ParallelDecoder
from dlm.distributed.group import ParallelGroup
from dlm.errors import ConfigError, RunError
from dlm.models.io.loading import load_checkpoint, random_checkpoint, read_checkpoint_config
from dlm.models.sharding import Shard
from dlm.models.sizes import SIZES
from tests.decoding.peaked import peaked
from tests.models.checkpoints import GOLDEN
from tests.models.test_sharding import in_threads

OPTIONS = DecoderOptions(max_num_seqs=5, max_num_batched_tokens=200, arena_tokens=400, poison=True)


def requests_of(size: str) -> list[Request]:
    """Every algorithm of the size's family, cold and warm in turn, over several lengths, some with two samples."""
    checkpoint, found = random_checkpoint(size), []
    for index, name in enumerate(checkpoint.family.algorithms):
        engine, sampler = compose(name, {}, family=checkpoint.family, attention=checkpoint.backbone.config.attention)
        prompt = tuple((7 * index + 3 * place + 11) % 1000 for place in range(3 + 5 * (index % 4)))
        params = SamplingParams(
            gen_length=16,
            block_length=8,
            steps=16,
            temperature=0.8 * (index % 2),
            seed=index,
            n=1 + index % 2,
            record=True,
        )
        found.append(Request(name, prompt, params, engine, sampler))
    return found


def plain(name: str = "r", **params: object) -> Request:
    given = {
        "gen_length": 24,
        "block_length": 8,
        "steps": 24,
        "temperature": 0.0,
        "ignore_eos": True,
        "seed": 1,
        **params,
    }
    return Request(name, (5, 6, 7), SamplingParams(**given), Full(), Fixed())


def by_id(completions: Sequence[Completion]) -> dict[tuple[str, int], tuple[object, ...]]:
    """All that has to be equal; log-probabilities, being sums in another order, are not."""
    return {
        (each.request_id, each.sample): (
            each.seed, each.prompt_ids, each.token_ids, each.canvas_ids, each.finish_reason, each.nfe, each.positions,
            each.step_map, each.error,
        )
        for each in completions
    }  # fmt: skip


def alone(size: str, dtype: str, requests: list[Request]) -> dict[tuple[str, int], tuple[object, ...]]:
    whole = peaked(size, dtype)
    return by_id(list(Decoder(whole.backbone, whole.special, OPTIONS).run(requests)))


def start(size: str = "tiny", dtype: str = "float32", options: DecoderOptions = OPTIONS) -> ParallelDecoder:
    return ParallelDecoder.start(partial(peaked, size, dtype), SIZES[size], 2, options)


def pids(decoder: ParallelDecoder) -> list[int]:
    assert decoder._workers is not None
    return [process.pid for process in decoder._workers.processes]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(
    ("size", "dtype"), [("tiny_llada2", "float64"), ("tiny_dream", "float32"), ("tiny_sdar", "float64")]
)
def test_two_processes_give_the_tokens_of_one(size: str, dtype: str) -> None:
    """Experts behind groups with a shared one, and few key/value heads, with biases and with head norms."""
    requests = requests_of(size)
    with start(size, dtype) as decoder:
        found = by_id(list(decoder.run(requests)))
        assert decoder.arena.ranges.num_taken == 0
    assert len(found) == sum(request.params.n for request in requests)
    assert not [facts for facts in found.values() if facts[-1]]
    assert found == alone(size, dtype, requests)


def test_two_groups_on_one_host_do_not_meet() -> None:
    """Dense layers and experts, each run a step now and then."""
    threads = torch.get_num_threads()
    with start("tiny", "float64") as one, start("tiny_moe") as other:
        runs = one.run(requests_of("tiny")), other.run(requests_of("tiny_moe"))
        turns = list(zip_longest(*runs))
    for index, (size, dtype) in enumerate((("tiny", "float64"), ("tiny_moe", "float32"))):
        assert by_id([turn[index] for turn in turns if turn[index]]) == alone(size, dtype, requests_of(size))
    assert torch.get_num_threads() == threads


@pytest.fixture(scope="module")
def decoder() -> Iterator[ParallelDecoder]:
    """A checkpoint from disk over two processes."""
    config = read_checkpoint_config(GOLDEN).backbone
    with ParallelDecoder.start(partial(load_checkpoint, GOLDEN, dtype="float64"), config, 2, OPTIONS) as decoder:
        yield decoder
        assert decoder.arena.ranges.num_taken == 0
    assert all(map(gone, pids(decoder)))
    with pytest.raises(RunError, match="closed"):
        decoder.add(plain())
    decoder.close()


def test_refused_requests_and_a_run_left_early_harm_nobody(decoder: ParallelDecoder) -> None:
    whole = load_checkpoint(GOLDEN, dtype="float64")
    requests = [replace(plain(f"r{index}"), prompt_ids=(9, 8, index)) for index in range(8)]
    expected = by_id(list(Decoder(whole.backbone, whole.special, OPTIONS).run(requests)))
    left = decoder.run(requests)
    next(left)
    left.close()  # type: ignore[attr-defined]  # declared as an iterator
    refused = replace(requests[0], id="refused", prompt_ids=())
    shared_heads = replace(requests[0], id="all heads", engine=Sparse(head_select=False))
    found = list(decoder.run([refused, *requests, shared_heads]))
    errors = {each.request_id: each.error or "" for each in found if each.error}
    assert "the prompt is empty" in errors["refused"]
    assert "head_select=False ranks by all heads" in errors["all heads"]
    assert by_id([each for each in found if not each.error]) == expected


def test_seeds_are_drawn_once_for_all(decoder: ParallelDecoder) -> None:
    """Ranks with different noise would reveal different tokens, and their sums would be of different batches."""
    drawn = plain(temperature=1.0, n=2, seed=None)
    seeds = {each.seed for each in [*decoder.run([drawn]), *decoder.run([drawn])]}
    assert len(seeds) == 2


def test_stop_rules_are_asked_in_one_process_and_kept_in_all(decoder: ParallelDecoder) -> None:
    asked: list[int] = []

    def rule(tokens: Sequence[int]) -> bool:
        asked.append(len(tokens))
        return len(tokens) >= 16

    def broken(tokens: Sequence[int]) -> bool:
        raise LookupError("no such text")

    before = by_id(list(decoder.run([plain("whole")])))
    stopped, whole = decoder.run([replace(plain("stopped"), should_stop=rule), plain("whole")])
    assert (stopped.finish_reason, stopped.canvas_ids.count(decoder.special.mask_id)) == ("stop", 8)
    assert len(asked) == 2
    with pytest.raises(LookupError):
        list(decoder.run([plain("other"), replace(plain(), should_stop=broken)]))
    assert by_id([whole]) == by_id(list(decoder.run([plain("whole")]))) == before


def test_a_size_that_does_not_divide_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kw: pytest.fail("a process was started"))
    with pytest.raises(ConfigError, match="tensor_parallel_size=3 does not divide the model's num_heads=4"):
        ParallelDecoder.start(partial(random_checkpoint, "tiny"), SIZES["tiny"], 3)


def test_a_launcher_of_another_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="tensor_parallel_size=2 and the launcher started 4 processes"):
        start()


def test_the_arena_is_what_the_process_with_the_least_room_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes on a CPU share the machine's memory."""
    room = {0: 2**24, 1: 2**22}
    here = threading.local()
    monkeypatch.setattr("dlm.decoding.decoder.free_memory", lambda device: room[here.rank])
    monkeypatch.setattr("dlm.decoding.tensor_parallel.decoder.free_memory", lambda device: room[here.rank])
    slot_bytes = Shard(0, 2).config(SIZES["tiny"]).kv_values_per_token * 4

    def work(group: ParallelGroup) -> int:
        here.rank = group.rank
        made = ParallelDecoder(group, peaked("tiny", shard=Shard(group.rank, 2)), DecoderOptions(max_num_seqs=64))
        return made.arena.ranges.capacity

    assert in_threads(2, work) == [2**22 // 4 // 2 // slot_bytes] * 2


def test_requests_go_to_rank_0() -> None:
    def work(group: ParallelGroup) -> str:
        made = ParallelDecoder(group, peaked("tiny", shard=Shard(group.rank, 2)), OPTIONS)
        if group.leads:
            return "leads"
        with pytest.raises(RunError) as refused:
            made.add(plain())
        return str(refused.value)

    assert in_threads(2, work) == ["leads", "requests go to rank 0; rank 1 follows it in run and close"]
