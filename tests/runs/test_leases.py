"""Each prompt is claimed once, whoever claims and however many; claims are taken no earlier than needed."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm.errors import RunError
from dlm.runs.leases import LeasePlan, Leases, divide
from tests import running


@given(st.lists(st.integers(0, 1000), max_size=300), st.integers(1, 9), st.integers(1, 64))
def test_claims_hold_each_prompt_once_and_costly_ones_first(costs: list[int], world: int, largest: int) -> None:
    claims = divide([(cost, number) for number, cost in enumerate(costs)], world, largest)
    numbers = [number for claim in claims for number in claim]
    assert sorted(numbers) == list(range(len(costs)))
    assert [costs[number] for number in numbers] == sorted(costs, reverse=True)
    assert all(claims)
    if world == 1:
        assert len(claims) <= 1
    else:
        sizes = [len(claim) for claim in claims]
        assert sizes == sorted(sizes, reverse=True)
        assert max(sizes, default=1) <= largest


@given(st.integers(2, 16), st.integers(1, 2000))
def test_the_last_claims_hold_one_prompt_so_that_all_end_together(world: int, prompts: int) -> None:
    claims = divide([(1, number) for number in range(prompts)], world, 64)
    tail = claims[-min(2 * world, prompts) :]
    assert all(len(claim) == 1 for claim in tail)


def test_a_fair_share_is_at_least_one() -> None:
    assert LeasePlan([], 4).fair_share() == 1
    assert LeasePlan([[0, 1], [2]], 4).fair_share() == 1
    assert LeasePlan([[0, 1], [2, 3, 4]], 2).fair_share() == 3


def test_all_read_the_plan_of_the_first(tmp_path: Path) -> None:
    first = Leases(tmp_path, "rank0").agree(LeasePlan([[0], [1]], 2))
    assert Leases(tmp_path, "rank1").agree(LeasePlan([[5]], 2)) == first
    with pytest.raises(RunError, match="made for 2 processes and this is one of 3"):
        Leases(tmp_path, "rank2").agree(LeasePlan([[5]], 3))


def _take(folder: Path, worker: str, plan: LeasePlan) -> None:
    taken = list(Leases(folder, worker).take(plan))
    (folder / f"{worker}.taken").write_text(json.dumps(taken))


def test_processes_that_race_share_all_prompts(tmp_path: Path) -> None:
    plan = LeasePlan(divide([(1, number) for number in range(500)], 4, 8), 4)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_take, args=(tmp_path, f"rank{rank}", plan)) for rank in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    taken = [number for rank in range(4) for number in json.loads((tmp_path / f"rank{rank}.taken").read_text())]
    assert sorted(taken) == list(range(500))


def test_threads_that_race_for_a_plan_agree(tmp_path: Path) -> None:
    plans: list[LeasePlan] = []
    running.race(lambda n: plans.append(Leases(tmp_path, f"rank{n}").agree(LeasePlan([[n]], 8))))
    assert len(plans) == 8
    assert len({json.dumps(plan.claims) for plan in plans}) == 1


def test_a_claim_is_taken_when_its_first_prompt_is_asked_for(tmp_path: Path) -> None:
    plan = LeasePlan([[0, 1], [2]], 2)
    stream = Leases(tmp_path, "rank0").take(plan)
    assert not list(tmp_path.iterdir())
    assert [next(stream), next(stream)] == [0, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert next(stream) == 2
    assert (tmp_path / "1").read_text() == "rank0"
    assert list(Leases(tmp_path, "rank1").take(plan)) == []


def test_claims_given_back_are_taken_by_those_who_have_not_ended_yet(tmp_path: Path) -> None:
    plan = LeasePlan([[0, 1], [2, 3], [4], [5]], 2)
    stopped, working = Leases(tmp_path, "rank0"), Leases(tmp_path, "rank1")
    first, second = stopped.take(plan), working.take(plan)
    assert [next(first), next(first), next(first), next(second)] == [0, 1, 2, 4]
    stopped.give_back(plan, answered={0, 1, 2})
    assert list(second) == [5, 2, 3]
    assert not working.left(plan)
    assert not Leases(tmp_path, "rank2").left(plan)


def test_a_process_that_is_started_again_goes_on_with_what_it_had_taken(tmp_path: Path) -> None:
    plan = LeasePlan([[0], [1], [2]], 2)
    killed = Leases(tmp_path, "task3-rank0").take(plan)
    assert [next(killed), next(Leases(tmp_path, "task4-rank0").take(plan))] == [0, 1]
    assert list(Leases(tmp_path, "task5-rank0").take(plan)) == [2]
    assert not Leases(tmp_path, "task3-restart1-rank0").left(plan)
    again = Leases(tmp_path, "task3-restart1-rank0", ["task3-rank0"])
    assert again.left(plan)
    assert list(again.take(plan)) == [0]


def test_claims_whose_prompts_are_answered_are_not_left(tmp_path: Path) -> None:
    assert not Leases(tmp_path, "rank0").left(LeasePlan([[], []], 2))
    assert Leases(tmp_path, "rank0").left(LeasePlan([[], [7]], 2))


def test_a_claim_that_cannot_be_written_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="No such file or directory"):
        next(Leases(tmp_path / "gone", "rank0").take(LeasePlan([[0]], 1)))


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[" * 200_000, b"[]", b"{}", b'{"world": 1}', b'{"world": 1, "claims": 3}',
             b'{"world": 1, "claims": [3]}', b'{"world": 1, "claims": [["a"]]}', b'{"world": 1, "claims": [[-1]]}',
             b'{"claims": [[0]]}', b"\xff"],
)  # fmt: skip
def test_a_damaged_plan_says_what_to_delete(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(text)
    with pytest.raises(RunError, match=r"plan\.json is damaged \(.*\): delete it"):
        Leases(tmp_path, "rank0").agree(LeasePlan([[0]], 1))
    (tmp_path / "plan.json").unlink()
    assert Leases(tmp_path, "rank0").agree(LeasePlan([[0]], 1)) == LeasePlan([[0]], 1)


def test_a_claim_that_is_damaged_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(b"\xff\xfe")
    assert list(Leases(tmp_path, "rank1", ["rank0"]).take(LeasePlan([[0]], 2))) == []
