"""Processes that are started together find the same folder and attempt without talking."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dlm.distributed.processes import is_alive, process_birth
from dlm.errors import ConfigError
from dlm.runs.launch import ATTEMPT, LAUNCHER, RUN_DIR, decide, forget

NAME = re.compile(r"outputs/predict/\d{8}_\d{6}-[0-9a-f]{4}")
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "1", "RANK": "0", "WORLD_SIZE": "2"}


def test_a_run_of_ones_own_gets_a_new_folder_each_time() -> None:
    first, second = decide(None, "predict", {}), decide(None, "predict", {})
    assert NAME.fullmatch(str(first.run_dir))
    assert first.run_dir != second.run_dir
    assert first.parent is None


def test_children_inherit_folder_and_attempt() -> None:
    environment: dict[str, str] = {}
    first = decide(None, "predict", environment)
    environment[LAUNCHER] = "1"
    child = decide(None, "predict", environment)
    assert (child.run_dir, child.attempt, child.parent) == (first.run_dir.absolute(), first.attempt, 1)


def test_a_resumed_folder_is_a_new_attempt() -> None:
    first, second = decide("x", "predict", {}), decide("x", "predict", {})
    assert first.run_dir == second.run_dir == Path("x")
    assert first.attempt != second.attempt


def test_two_different_folders_are_refused() -> None:
    with pytest.raises(ConfigError, match="DLM_RUN_DIR=y differ"):
        decide("x", "predict", {RUN_DIR: "y"})


def test_what_was_decided_is_forgotten_by_the_one_who_did() -> None:
    environment: dict[str, str] = {}
    decide(None, "predict", environment)
    forget(environment)
    assert environment == {}
    inherited = {RUN_DIR: "x", ATTEMPT: "a", LAUNCHER: "1"}
    forget(inherited)
    assert len(inherited) == 3


def test_workers_of_one_torchrun_agree() -> None:
    first, second = decide(None, "predict", dict(TORCHRUN)), decide(None, "predict", dict(TORCHRUN))
    again = decide(None, "predict", {**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "1"})
    first.discard_note()
    again.discard_note()
    assert (first.run_dir, first.attempt) == (second.run_dir, second.attempt)
    assert first.parent == os.getppid()
    assert again.attempt != first.attempt
    assert first.note is not None
    assert not first.note.exists()


def test_several_machines_need_a_folder_in_common() -> None:
    many = {**TORCHRUN, "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "job7"}
    with pytest.raises(ConfigError, match="set run_dir=<shared folder> or DLM_RUN_DIR"):
        decide(None, "predict", dict(many))
    assert decide("x", "predict", dict(many)).attempt == "torchrun-job7-0"
    with pytest.raises(ConfigError, match="--rdzv-id"):
        decide("x", "predict", {**many, "TORCHELASTIC_RUN_ID": "none"})
    assert (
        decide("x", "predict", {**many, "TORCHELASTIC_RUN_ID": "none", "SLURM_JOB_ID": "9"}).attempt == "torchrun-9-0"
    )


def test_tasks_of_one_srun_agree() -> None:
    environment = {"SLURM_JOB_ID": "5", "SLURM_STEP_ID": "2", "SLURM_NTASKS": "8", "SLURM_PROCID": "3", RUN_DIR: "x"}
    assert decide(None, "predict", dict(environment)).attempt == "slurm-5-2-0"
    with pytest.raises(ConfigError, match="need one folder"):
        decide(None, "predict", {key: value for key, value in environment.items() if key != RUN_DIR})


def test_tasks_of_a_job_array_share_an_attempt_and_know_their_number() -> None:
    array = {"SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "6"}
    launch = decide("x", "predict", dict(array))
    assert (launch.attempt, launch.array_task, launch.array_size) == ("slurm-array-11", 3, 6)
    assert (launch.array_restart, decide("x", "predict", {**array, "SLURM_RESTART_COUNT": "2"}).array_restart) == (0, 2)


def test_the_jobs_of_a_sweep_are_runs_of_their_own_though_submitit_starts_them_as_an_array() -> None:
    array = {"SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "6"}
    launch = decide(None, "predict", {**array, "SUBMITIT_EXECUTOR": "slurm", "SLURM_RESTART_COUNT": "1"})
    assert NAME.fullmatch(str(launch.run_dir))
    assert (launch.array_task, launch.array_size, launch.array_restart) == (None, 1, 0)


def test_a_process_is_told_from_a_later_one_and_from_its_own_corpse() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    birth = process_birth(process.pid)
    assert is_alive(process.pid, birth)
    assert not is_alive(process.pid, birth + "0")
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(process.pid, birth), "a zombie counts as dead"
    process.communicate()
    assert not is_alive(process.pid, birth)
    assert process_birth(process.pid) == ""
