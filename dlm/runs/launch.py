"""Who this process is among those that work on a run, and which run folder and attempt they share.

All processes of one start must agree on the folder and the attempt before they can talk to each other:

* Lightning's own launcher: the first process decides and its children inherit `DLM_RUN_DIR` and `DLM_ATTEMPT`;
* torchrun on one machine: the first worker leaves a note named after their common parent, the agent;
* torchrun or srun on several machines, and job arrays: the folder comes from `run_dir=` or `DLM_RUN_DIR` (the scripts
  in `launch/` set it), the attempt from the job.

Knows neither torch nor Lightning.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path

from dlm.distributed.processes import machine, process_birth
from dlm.errors import ConfigError
from dlm.runs.whole_files import publish

RUN_DIR, ATTEMPT, LAUNCHER = "DLM_RUN_DIR", "DLM_ATTEMPT", "DLM_LAUNCHER_PID"
OUTPUTS = Path("outputs")


@dataclass(frozen=True)
class Launch:
    """One process's place.

    Attributes:
        run_dir: the run's folder.
        attempt: name shared by the processes that were started together.
        array_task: index in a job array, else None.
        array_size: tasks in the array, 1 without one.
        array_restart: how often this task was started before; the queue starts a preempted one again.
        parent: process to outlive by no more than a moment; None where nobody launched this one.
        note: the file through which torchrun's workers agreed.
    """

    run_dir: Path
    attempt: str
    array_task: int | None = None
    array_size: int = 1
    array_restart: int = 0
    parent: int | None = None
    note: Path | None = None

    def prefix(self, program: list[str]) -> list[str]:
        """`program` as it has to be typed to start all processes again."""
        if self.note is None or program[:2] != ["python", "-m"]:
            return program
        workers = os.environ.get("LOCAL_WORLD_SIZE", "1")
        return ["torchrun", f"--nproc-per-node={workers}", *program[1:]]

    def discard_note(self) -> None:
        """At the end of the first of torchrun's workers: the others have read it, or have failed like this one."""
        if self.note is not None and os.environ.get("RANK", "0") == "0":
            self.note.unlink(missing_ok=True)


def decide(run_dir: str | None, verb: str, environment: MutableMapping[str, str] = os.environ) -> Launch:
    """Find the run folder and the attempt, and leave them in `environment` for children.

    Raises:
        ConfigError: `run_dir` and `DLM_RUN_DIR` differ, or several machines have no folder in common.
    """
    inherited = environment.get(RUN_DIR)
    if run_dir and inherited and Path(run_dir).absolute() != Path(inherited).absolute():
        raise ConfigError(f"run_dir={run_dir} and the environment's {RUN_DIR}={inherited} differ: unset one of them")
    folder, attempt = run_dir or inherited, environment.get(ATTEMPT)
    # Submitit starts the jobs of a sweep as an array, too, and these are runs of their own.
    array = "SLURM_ARRAY_TASK_ID" in environment and "SUBMITIT_EXECUTOR" not in environment
    if array:
        attempt = attempt or f"slurm-array-{environment['SLURM_ARRAY_JOB_ID']}"
    elif "TORCHELASTIC_RUN_ID" in environment:
        attempt = attempt or _torchrun_attempt(environment)
    elif int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        step = "-".join(environment.get(key, "0") for key in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))
        attempt = attempt or f"slurm-{step}"
    else:
        attempt = attempt or _new_name()
    if folder is None:
        if attempt.startswith("slurm") or int(environment.get("GROUP_WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                f"processes on several machines need one folder: set run_dir=<shared folder> or {RUN_DIR} "
                "(launch/torchrun.sh and launch/predict.sbatch do)"
            )
        folder = str(OUTPUTS / verb / attempt)
    parent = _parent(environment)
    environment[RUN_DIR], environment[ATTEMPT] = str(Path(folder).absolute()), attempt
    environment.setdefault(LAUNCHER, str(os.getpid()))
    return Launch(
        run_dir=Path(folder),
        attempt=attempt,
        array_task=int(environment["SLURM_ARRAY_TASK_ID"]) if array else None,
        array_size=int(environment.get("SLURM_ARRAY_TASK_COUNT", "1")) if array else 1,
        array_restart=int(environment.get("SLURM_RESTART_COUNT", "0")) if array else 0,
        parent=parent,
        note=_torchrun_note(environment) if "TORCHELASTIC_RUN_ID" in environment else None,
    )


@contextmanager
def launched(run_dir: str | None, verb: str) -> Iterator[Launch]:
    """`decide`, and at the end `forget` and what else must not stay. Raises as `decide`."""
    launch = decide(run_dir, verb)
    try:
        yield launch
    finally:
        launch.discard_note()
        forget()


def forget(environment: MutableMapping[str, str] = os.environ) -> None:
    """Take back what `decide` left, so that another run in this process gets a folder of its own."""
    if environment.get(LAUNCHER) == str(os.getpid()):
        for key in (RUN_DIR, ATTEMPT, LAUNCHER):
            environment.pop(key, None)


def is_launched() -> bool:
    """Whether torchrun or srun started this process as one of several."""
    by_srun = "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return by_srun or "TORCHELASTIC_RUN_ID" in os.environ


def _parent(environment: Mapping[str, str]) -> int | None:
    """The process that launched this one as part of a group; None for the one that a user started."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return os.getppid()
    launcher = environment.get(LAUNCHER)
    return int(launcher) if launcher is not None and int(launcher) != os.getpid() else None


def _torchrun_attempt(environment: Mapping[str, str]) -> str:
    restart = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    if int(environment.get("GROUP_WORLD_SIZE", "1")) == 1:
        note = _torchrun_note(environment)
        publish(note, _new_name())
        return note.read_text()
    job = environment["TORCHELASTIC_RUN_ID"]
    if job in ("", "none"):
        job = environment.get("SLURM_JOB_ID", "")
    if not job:
        raise ConfigError(f"torchrun on several machines needs --rdzv-id=<name of this start>, or {ATTEMPT} set alike")
    return f"torchrun-{job}-{restart}"


def _torchrun_note(environment: Mapping[str, str]) -> Path:
    """A file of this start of torchrun's workers on this machine."""
    agent, restart = os.getppid(), environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    digest = blake2b(f"{machine()} {agent} {process_birth(agent)} {restart}".encode(), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"dlm-{os.getuid()}-{digest}"


def _new_name() -> str:
    return f"{datetime.now(UTC):%Y%m%d_%H%M%S}-{secrets.token_hex(2)}"
