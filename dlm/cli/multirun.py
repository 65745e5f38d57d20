"""Several jobs from one command line (`-m`): where each has its folder, and what is said of it.

A job's folder lies in that of the sweep and is named after what was typed. So the same command with the same
`hydra.sweep.dir` goes on where it stopped, several sweeps can share a folder, and `python -m dlm.report runs=folder`
shows them together.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from types import FrameType

from omegaconf import DictConfig

from dlm.config.checks import in_multirun
from dlm.distributed.processes import die_with

LONGEST = 120
"""Characters of a folder's name, before what tells it from others with the same beginning."""
UNTOLD = ("run_dir", "logger", "progress")
"""Parts of the configuration that no name is made of."""


def one_after_the_other() -> bool:
    """Whether this process goes through the jobs, and no cluster starts them."""
    from hydra.core.hydra_config import HydraConfig

    target: str = HydraConfig.get().launcher._target_
    return in_multirun() and target.endswith("BasicLauncher")


def begin_job(config: DictConfig, words: Sequence[str]) -> list[Path]:
    """Say which job begins, and give it its folder where `run_dir` does not say another; returns the sweep's folder,
    nothing where the job's folder is not in it."""
    from hydra.core.hydra_config import HydraConfig

    if one_after_the_other():
        told = [word for word in words if not word.startswith("run_dir=")]
        print(f"job {HydraConfig.get().job.num + 1}: {shlex.join(told)}", flush=True)
    if "run_dir" not in config or config.run_dir is not None:
        return []
    folder = Path(HydraConfig.get().sweep.dir)
    config.run_dir = str(folder / name_of(words))
    return [folder]


def separately(job: Callable[[], int]) -> int:
    """Run a job in a process of its own, so that what kills it leaves the other jobs; returns its exit code.

    The process is a copy of this one: what is imported here is imported once for all jobs. It must not have used a GPU.
    Ctrl-C and SIGTERM are handed on to it. A job that was killed has exit code 1.
    """
    import lightning.pytorch  # noqa: F401  # for the copies: most of the seconds in which a job does nothing

    parent = os.getpid()

    def work() -> None:
        os.setpgrp()  # or Ctrl-C in a terminal would reach it twice, and twice means at once
        die_with(parent)
        try:
            sys.exit(job())
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    asked: list[int] = []

    def hand_on(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)
        os.kill(process.pid or os.getpid(), signum)

    before = {signum: signal.signal(signum, hand_on) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        process.join()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    code = process.exitcode or 0
    if asked:
        return 128 + asked[0]
    if code < 0:
        print(f"killed by {signal.Signals(-code).name}", file=sys.stderr)
        return 1
    return code


def name_of(words: Iterable[str]) -> str:
    """A folder's name for what was typed, of characters that need no quotes anywhere, different for different words.

    `["algorithm=klass", "sampler.threshold=0.5"]` is `algorithm-klass--sampler.threshold-0.5`.
    """
    told = [word for word in words if re.split(r"[.=/]", word.lstrip("+~"), maxsplit=1)[0] not in UNTOLD]
    name = "--".join(re.sub(r"[^A-Za-z0-9_.]+", "-", word).strip("-.") for word in told) or "job"
    if len(name) > LONGEST or not all(re.fullmatch(r"[\w.]+=[\w.]*\w", word, re.ASCII) for word in told):
        digest = blake2b("\n".join(told).encode(), digest_size=4).hexdigest()
        name = f"{name[:LONGEST]}-{digest}"
    return name


def end_sweep(folders: Sequence[Path], failed: Sequence[tuple[int, str]]) -> int:
    """Say what failed and where the runs lie; returns the exit code.

    Args:
        folders: what `begin_job` returned of the jobs that were run here.
        failed: exit code and words of each job that failed.
    """
    for folder in dict.fromkeys(folders):
        report = shlex.join(["python", "-m", "dlm.report", f"runs={folder}"])
        print(f"{folder} holds the runs; side by side: {report}")
    if not failed:
        return 0
    print("\n  ".join([f"{len(failed)} of the jobs failed:", *(words for _, words in failed)]), file=sys.stderr)
    return max(code for code, _ in failed)
