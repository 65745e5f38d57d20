"""The load tool: what it sends, when, and what it says about servers that answer, refuse, break off or do not come."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import statistics
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dlm.bench import task
from dlm.bench.config import register, to_bench
from dlm.bench.load.bodies import arrivals, bodies, read_prompts
from dlm.bench.load.config import LoadConfig
from dlm.bench.load.drive import LoadPlan, drive
from dlm.bench.load.figures import percentiles
from dlm.bench.load.run import algorithms_of, measure
from dlm.bench.load.servers import running
from dlm.bench.load.target import Client, LoadTarget
from dlm.cli.command_line import compose_config
from dlm.errors import ConfigError, RunError
from tests.bench.stand_in_server import GOOD, StandIn
from tests.running import TIMEOUT

WORK = LoadConfig(concurrency=[2], requests=8, rounds=2, warmup=1, timeout=TIMEOUT)


@pytest.fixture(name="stand_in")
def make_stand_in() -> Iterator[Callable[..., StandIn]]:
    made: list[StandIn] = []

    def make(*given: Any, **more: Any) -> StandIn:
        made.append(StandIn(*given, **more))
        threading.Thread(target=made[-1].serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return made[-1]

    yield make
    for one in made:
        one.shutdown()
        one.server_close()


def test_the_same_seed_sends_the_same_bodies() -> None:
    work = LoadConfig(
        concurrency=[1], requests=200, max_tokens=[8, 16], temperatures=[0.0, 1.0], n=[1, 2], streamed=0.25,
        fields={"ignore_eos": True},
    )  # fmt: skip
    sent = bodies(work, [], ["default", "basic"], 0, 1)
    assert sent == bodies(work, [], ["default", "basic"], 0, 1)
    assert sent != bodies(work, [], ["default", "basic"], 0, 0)
    for name, values in (("max_tokens", {8, 16}), ("temperature", {0.0, 1.0}), ("n", {1, 2})):
        assert {body[name] for body in sent} == values
    assert {body.get("generation_algorithm") for body in sent} == {None, "basic"}
    assert all(body["ignore_eos"] is True for body in sent)
    assert 0.15 < sum("stream" in body for body in sent) / 200 < 0.35
    assert len({body["seed"] for body in sent}) == 200
    lengths = [len(body["messages"][0]["content"].split()) for body in sent]
    assert (min(lengths), max(lengths), statistics.median(lengths)) == (15, 164, 43)


def test_prompts_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "one"}\n{"question": "two"}\n')
    work = LoadConfig(concurrency=[1], requests=3, prompts=str(path), prompt_field="question")
    sent = bodies(work, read_prompts(work), ["default"], 0, 0)
    assert [body["messages"][0]["content"] for body in sent] == ["one", "two", "one"]


@pytest.mark.parametrize("burst", [1.0, 8.0])
def test_arrivals_have_the_rate_and_come_in_groups(burst: float) -> None:
    due = arrivals(5.0, burst, 20000, random.Random(1))
    assert due == sorted(due)
    assert due[-1] == pytest.approx(20000 / 5, rel=0.1)
    assert 20000 / len(set(due)) == pytest.approx(burst, rel=0.1)


def test_percentiles_are_nearest_ranks() -> None:
    assert percentiles([float(value) for value in range(1, 201)]) == {"p50": 100, "p95": 190, "p99": 198}
    assert percentiles([3.0]) == {"p50": 3, "p95": 3, "p99": 3}
    assert all(map(math.isnan, percentiles([]).values()))


def test_a_row_has_what_the_server_said(stand_in: Callable[..., StandIn]) -> None:
    server = stand_in(events=GOOD)
    [row] = measure(WORK, "t", [LoadTarget.at(server.url)])
    assert (row.requests, row.errors) == (16, {})
    assert (row.prompt_tokens, row.tokens) == (5, 7)
    assert row.tokens_per_second == pytest.approx(7 * row.requests_per_second)
    assert row.requests_per_second == pytest.approx(16 / row.seconds)
    assert row.mean_batch == 2
    assert 0 < row.latency["p50"] <= row.latency["p99"] <= row.seconds
    assert 0 < row.first_block["p50"] <= row.latency["p99"]
    assert row.health["p99"] > 0
    assert {body["model"] for body in server.seen} == {"stand-in"}
    assert len(server.seen) == 17


@pytest.mark.parametrize(
    ("server", "status"),
    [
        ({"status": 429}, "429"),
        ({"events": GOOD[:2]}, "cut off"),
        ({"events": (*GOOD[:2], '{"error": {"type": "timeout"}}')}, "in the stream: timeout"),
        ({"events": ("{broken",)}, "JSONDecodeError"),
    ],
)
def test_what_goes_wrong_is_counted_by_what_it_was(
    stand_in: Callable[..., StandIn], server: dict[str, Any], status: str
) -> None:
    target = LoadTarget.at(stand_in(**server).url)
    sent = bodies(LoadConfig(concurrency=[1], requests=4, streamed=1.0), [], ["default"], 0, 0)
    one = drive(target, LoadPlan(clients=2), sent, [], seconds=TIMEOUT, timeout=TIMEOUT)
    assert [answer.status for answer in one.answers] == [status] * 4
    with pytest.raises(RunError, match="answered none of the 1 warm-up requests"):
        measure(LoadConfig(concurrency=[1], streamed=1.0, warmup=1), "t", [target])


def test_a_server_that_is_gone_is_told() -> None:
    async def ask() -> str:
        async with Client(LoadTarget("t", "http://127.0.0.1:1", "m", ()), TIMEOUT) as client:
            return (await client.ask({})).status

    assert asyncio.run(ask()) == "ConnectError"
    with pytest.raises(RunError, match=r"http://127.0.0.1:1 does not respond .* python -m dlm.serve"):
        LoadTarget.at("http://127.0.0.1:1/v1")


def test_an_open_loop_waits_for_nobody_and_counts_from_when_a_request_was_due(
    stand_in: Callable[..., StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is answered before four are there; the fifth is due when no further is sent."""
    target = LoadTarget.at(stand_in().url)
    running = 0
    all_are_there = asyncio.Event()

    async def slow(self: Client, body: dict[str, Any], due: float | None = None) -> Any:
        nonlocal running
        running += 1
        if running == 4:
            all_are_there.set()
        async with asyncio.timeout(TIMEOUT):
            await all_are_there.wait()
        await asyncio.sleep(0.2)
        return await ask(self, body, due)

    ask = Client.ask
    monkeypatch.setattr(Client, "ask", slow)
    sent = bodies(LoadConfig(requests=5, streamed=0.0), [], ["default"], 0, 0)
    due = [0.0, 0.01, 0.01, 0.02, TIMEOUT + 1]
    one = drive(target, LoadPlan(rate=50), sent, due, seconds=TIMEOUT, timeout=TIMEOUT)
    assert (len(one.answers), running) == (4, 4)
    assert all(answer.seconds >= 0.2 for answer in one.answers)
    assert one.seconds >= max(answer.seconds for answer in one.answers)


def test_the_key_is_shown(stand_in: Callable[..., StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    server = stand_in(key="Bearer secret")
    with pytest.raises(RunError, match="set DLM_API_KEY"):
        LoadTarget.at(server.url)
    monkeypatch.setenv("DLM_API_KEY", "secret")
    assert LoadTarget.at(server.url).algorithms == ("basic",)


def test_all_stands_for_what_every_server_can_run() -> None:
    work = LoadConfig(algorithms=["default", "all"])
    one, two = (LoadTarget("", "", "", algorithms) for algorithms in (("basic", "klass"), ("klass",)))
    assert algorithms_of(work, [one, two]) == ["default", "klass"]
    with pytest.raises(RunError, match="name some"):
        algorithms_of(work, [LoadTarget("", "", "", ())])


MINE = """\
# @package _global_
defaults:
  - /schema/compare@compare
  - override /workload: load_smoke
  - _self_
compare:
  models: {mine: [model=demo]}
  servers: {alone: [batch_size=1], together: [batch_size=4]}
"""


def run(tmp_path: Path, *overrides: str) -> list[dict[str, Any]]:
    register()
    path = tmp_path / "load.json"
    assert task(compose_config("bench", ["target=server", *overrides, f"json={path}"], str(tmp_path)), ()) == 0
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


@pytest.mark.slow
@pytest.mark.long
def test_servers_are_started_and_compared_by_turns_and_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "mine.yaml").write_text(MINE)
    rows = run(tmp_path, "compare=mine", "workload.n=[2]")
    assert [(row["title"], row["load"]["clients"], row["server"]) for row in rows] == [
        ("mine", clients, server) for clients in (2, 0) for server in ("alone", "together")
    ]
    for row in rows:
        assert (row["requests"], row["errors"]) == (12, {})
        assert row["prompt_tokens"] > 20
    assert [row["mean_batch"] for row in rows if row["server"] == "alone"] == [1.0, 1.0]
    assert all(row["mean_batch"] > 1 for row in rows if row["server"] == "together")
    assert rows[0]["tokens"] == rows[1]["tokens"], "the same requests have the same answers"
    ratio = rows[1]["requests_per_second"] / rows[0]["requests_per_second"]
    assert rows[1]["over_first"]["requests_per_second"] == pytest.approx(ratio)
    shown = capsys.readouterr()
    assert "20/s, 4 at once" in shown.out
    for port in re.findall(r" port=(\d+)", shown.err):
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/health")


def test_servers_that_run_are_compared_by_turns(stand_in: Callable[..., StandIn], tmp_path: Path) -> None:
    one, two = stand_in(), stand_in()
    rows = run(tmp_path, "workload=load_smoke", f"url=[{one.url},{two.url}]", "workload.streamed=0.0")
    assert [row["server"] for row in rows] == [one.url, two.url] * 2
    seen = [sorted((body["seed"], body["messages"][0]["content"]) for body in each.seen) for each in (one, two)]
    assert seen[0] == seen[1]


def test_a_server_that_does_not_start_is_told_with_its_log() -> None:
    servers = running(["model=demo"], {"wrong": ["batch_size=0"]})
    with pytest.raises(RunError, match=r"(?s)exited with code 2; its log ends:.*batch_size=0"), servers:
        raise AssertionError


def faults(*overrides: str) -> str:
    register()
    with pytest.raises(ConfigError) as caught:
        to_bench(compose_config("bench", list(overrides)))
    return str(caught.value)


def test_all_faults_are_named_at_once() -> None:
    wrong = [
        "concurrency=[0]", "rates=[-1.0]", "bursts=[0.5]", "rounds=0", "requests=0", "seconds=0.0", "streamed=2.0",
        "algorithms=[]", "max_tokens=[]", "prompts=/no/such/file",
    ]  # fmt: skip
    message = faults("target=server", "url=here", *(f"workload.{one}" for one in wrong), "+workload.fields.seed=1")
    assert "url=here must be http://host:port" in message
    assert "workload.fields.seed" in message
    for one in wrong:
        assert f"workload.{one}" in message


def test_what_does_not_go_with_the_target_is_refused() -> None:
    assert "set one of the two" in faults("target=server")
    assert "set one of the two" in faults("target=server", "url=http://a", "compare=batching")
    assert "names a server twice" in faults("target=server", "url=[http://a,http://a]")
    assert "device= is for target=decoder" in faults("target=server", "url=http://a", "device=cpu")
    assert "for target=server use load" in faults("target=server", "url=http://a", "workload=smoke")
    assert "url= needs target=server" in faults("url=http://a")
    assert "set target=server too" in faults("workload=load")
    message = faults("target=server", "compare=batching", "compare.models.demo=['port=1']")
    assert "'port=1' of 'demo' is chosen by the bench" in message
