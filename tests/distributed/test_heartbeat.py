"""Processes know when another works, has ended, failed or died; and none outlives its launcher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dlm.distributed import heartbeat as ranks
from dlm.distributed.heartbeat import Heartbeat, PeerMonitor, StopFlag, read_status, status_file
from tests.clock import Clock
from tests.running import wait_until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "BEAT", 0.02)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(ranks, "time", found)
    return found


def beat(folder: Path) -> int:
    status = read_status(folder, "rank0")
    return -1 if status is None else status.beat


def test_a_heart_beats_and_tells_its_end(tmp_path: Path) -> None:
    with Heartbeat(tmp_path, "rank0", StopFlag()) as heart:
        wait_until(lambda: beat(tmp_path) > 2, "the third beat")
        heart.count(rows=2, errors=1, tokens=30, nfe=4)
        heart.update(state="running")
        status = read_status(tmp_path, "rank0")
        assert status is not None
        assert (status.state, status.rows, status.errors, status.tokens, status.nfe) == ("running", 2, 1, 30, 4)
        assert PeerMonitor(tmp_path, ["rank0"]).unfinished() == ["rank0"]
    others = PeerMonitor(tmp_path, ["rank0"])
    assert (others.unfinished(), others.dead(), others.failed()) == ([], [], [])


def test_a_failure_is_told_to_the_others(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no room"), Heartbeat(tmp_path, "rank1", StopFlag()):
        raise ValueError("no room")
    assert PeerMonitor(tmp_path, ["rank1"]).failed() == ["rank1 failed: ValueError: no room"]


def test_a_thrown_switch_reaches_all(tmp_path: Path) -> None:
    mine, theirs, heard = StopFlag(), StopFlag(), []
    theirs.on_stop(lambda: heard.append("stop"))
    with Heartbeat(tmp_path, "rank0", mine), Heartbeat(tmp_path, "rank1", theirs):
        mine.throw(2)
        wait_until(lambda: bool(theirs), "the other switch")
    theirs.throw()
    assert heard == ["stop"]
    assert (mine.signum, theirs.signum) == (2, None)


def test_an_action_added_after_the_throw_acts_at_once() -> None:
    switch, heard = StopFlag(), []
    switch.throw()
    switch.on_stop(lambda: heard.append("stop"))
    assert heard == ["stop"]


def test_a_killed_process_on_this_machine_is_dead_at_once(tmp_path: Path) -> None:
    program = (
        "import signal, sys; from pathlib import Path; from dlm.distributed.heartbeat import *\n"
        "with Heartbeat(Path(sys.argv[1]), 'rank1', StopFlag()): signal.pause()"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    wait_until(lambda: read_status(tmp_path, "rank1") is not None, "the first beat")
    others = PeerMonitor(tmp_path, ["rank1"])
    assert others.dead() == []
    process.kill()
    process.wait()
    assert (others.dead(), others.failed()) == (["rank1"], ["rank1 died"])
    others.wait()


def test_a_silent_process_on_another_machine_is_dead_after_a_while(tmp_path: Path, clock: Clock) -> None:
    with Heartbeat(tmp_path, "rank1", StopFlag()):
        told = json.loads(status_file(tmp_path, "rank1").read_text())
    status_file(tmp_path, "rank1").write_text(json.dumps({**told, "machine": "elsewhere", "state": "running"}))
    others = PeerMonitor(tmp_path, ["rank1"])
    assert others.unfinished() == ["rank1"]
    clock.sleep(ranks.SILENCE)
    assert others.unfinished() == ["rank1"]
    clock.sleep(0.001)
    assert others.dead() == ["rank1"]


def test_a_process_on_another_machine_that_beats_lives(tmp_path: Path, clock: Clock) -> None:
    with Heartbeat(tmp_path, "rank1", StopFlag()):
        told = json.loads(status_file(tmp_path, "rank1").read_text())
    others = PeerMonitor(tmp_path, ["rank1"])
    for number in range(5):
        beating = {**told, "machine": "elsewhere", "state": "running", "beat": number}
        status_file(tmp_path, "rank1").write_text(json.dumps(beating))
        assert others.unfinished() == ["rank1"]
        clock.sleep(ranks.SILENCE)
        assert others.unfinished() == ["rank1"]


def test_a_process_that_never_spoke_is_waited_for_a_while(tmp_path: Path, clock: Clock) -> None:
    others = PeerMonitor(tmp_path, ["rank1"])
    assert others.unfinished() == ["rank1"]
    others.wait()
    assert ranks.SILENCE < clock.now <= ranks.SILENCE + ranks.BEAT


def test_nobody_outlives_the_launcher(tmp_path: Path) -> None:
    child = (
        "import os, signal, sys; from pathlib import Path; from dlm.distributed.processes import die_with\n"
        "die_with(int(sys.argv[2])); Path(sys.argv[1], 'pid').write_text(str(os.getpid())); signal.pause()"
    )
    launcher = (
        "import os, signal, subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}, sys.argv[1], str(os.getpid())]); signal.pause()"
    )
    process = subprocess.Popen([sys.executable, "-c", launcher, str(tmp_path)])
    wait_until(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()), "the child's start")
    pid = int((tmp_path / "pid").read_text())
    process.kill()
    process.wait()
    wait_until(lambda: not ranks.is_alive(pid, ranks.process_birth(pid)), "the child's end")
