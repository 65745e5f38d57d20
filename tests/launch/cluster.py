"""A PATH on which SLURM, SSH and Python are stand-ins, and what was called on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.running import TIMEOUT, wait_until

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
STAND_INS = ("sbatch", "srun", "squeue", "scontrol", "scancel", "ssh", "python", "curl")
TOOLS = (
    "basename", "bash", "cat", "date", "dirname", "env", "grep", "head", "hostname", "mkdir", "od", "rm", "sed", "seq",
    "tr", "true",
)  # fmt: skip
"""What the scripts may use besides: nothing else is on the PATH."""
SECRETS = {"DLM_API_KEY": "key-5f2d0c", "HF_TOKEN": "hf_9b41aa"}
MODULES = (
    "dlm", "fastapi", "httpx", "prometheus_client", "pydantic", "sse_starlette", "uvicorn", "vllm_router",
)  # fmt: skip
"""What `serve.sbatch` looks for."""


class Cluster:
    """A folder with the stand-ins; scripts are run in it, with an environment of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.work = folder / "work"
        for path in (self.bin, self.work, folder / "modules"):
            path.mkdir()
        program = (Path(__file__).with_name("stand_in.py")).read_text()
        for name in STAND_INS:
            (self.bin / name).write_text(f"#!{sys.executable} -IS\n{program}")
            (self.bin / name).chmod(0o755)
        # Seconds between two looks pass quickly; parts of a second are the patience of a script and stay what they are.
        shorter = f'case $1 in 0.*) exec {program_of("sleep")} "$1" ;; *) exec {program_of("sleep")} 0.05 ;; esac'
        (self.bin / "sleep").write_text(f"#!{program_of('bash')}\n{shorter}\n")
        (self.bin / "sleep").chmod(0o755)
        for name in TOOLS:
            (self.bin / name).symlink_to(program_of(name))
        (folder / "curl").symlink_to(program_of("curl"))  # its stand-in hands on to it
        for name in MODULES:
            (folder / "modules" / f"{name}.py").touch()
        self.env = {"PATH": str(self.bin), "HOME": str(folder), "STAND_INS": str(folder), **SECRETS}

    def job(self, *, nodes: int = 1, **extra: str) -> dict[str, str]:
        """What SLURM tells a batch script."""
        names = "\n".join(f"n{number + 1}" for number in range(nodes))
        self.answer("scontrol", [0, f"{names}\n"])
        return {
            "SLURM_JOB_ID": "123",
            "SLURM_NNODES": str(nodes),
            "SLURM_JOB_NODELIST": f"n[1-{nodes}]",
            "SLURM_SUBMIT_DIR": str(self.work),
            "SLURM_CPUS_PER_TASK": "8",
            **extra,
        }

    def answer(self, program: str, *answers: Sequence[object]) -> None:
        """What each call of a program answers, as `[exit code, output]`; the last stays."""
        (self.folder / f"{program}.json").write_text(json.dumps(answers))

    def remove(self, *programs: str) -> None:
        for name in programs:
            (self.bin / name).unlink()

    @contextmanager
    def started(self, script: str, *arguments: str, **extra: str) -> Iterator[subprocess.Popen[str]]:
        """A script in a session of its own, with all that it starts; nothing of it is left afterwards."""
        process = subprocess.Popen(
            [str(self.bin / "bash"), str(LAUNCH / script), *arguments],
            cwd=self.work,
            env={**self.env, **extra},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with process:
            try:
                yield process
            finally:
                for pid in session_of(process):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def finish(self, process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        """Wait for a script; it has left no process, shown no secret and put none on a command line."""
        out, err = process.communicate(timeout=TIMEOUT)
        wait_until(lambda: not session_of(process), "all that the script started ended")
        for secret in SECRETS.values():
            assert secret not in out + err
            assert not any(secret in word for call in self.log() for word in call["argv"])
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def run(self, script: str, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        with self.started(script, *arguments, **extra) as process:
            return self.finish(process)

    def refuses(self, message: str, script: str, *arguments: str, code: int = 2, **extra: str) -> None:
        """The script ends with `code`, says `message` and starts nothing."""
        before = self.calls("srun", "sbatch", "python")
        done = self.run(script, *arguments, **extra)
        assert done.returncode == code, done.stderr
        assert message in done.stderr
        assert self.calls("srun", "sbatch", "python") == before

    def log(self) -> list[dict[str, Any]]:
        path = self.folder / "calls.jsonl"
        if not path.exists():
            return []
        whole, _, _ = path.read_text().rpartition("\n")  # somebody may be writing the last line
        return [json.loads(line) for line in whole.splitlines()]

    def calls(self, *programs: str) -> list[list[str]]:
        """Command lines of the calls of these programs, in order."""
        return [call["argv"] for call in self.log() if call["event"] == "called" and call["program"] in programs]

    def environment(self, *words: str) -> dict[str, str]:
        """What the first call with all of `words` on its command line found in its environment."""
        found: dict[str, str] = next(call["env"] for call in self.log() if {*words} <= {*call["argv"]})
        return found

    def ends(self) -> list[tuple[str, list[str]]]:
        """Which signal came to what, and what ended after it, in order."""
        return [(call["event"], call["argv"]) for call in self.log() if call["event"] not in ("called", "waiting")]

    def waiting(self) -> int:
        """How many programs run until they get a signal."""
        return sum(call["event"] == "waiting" for call in self.log())

    def warn(self) -> None:
        """SIGTERM to the processes of the first step, as SLURM sends it before the time is up."""
        subprocess.run([self.bin / "scancel", "--signal=TERM", "123.0"], env=self.env, check=True)

    def wait_for(self, waiting: int, process: subprocess.Popen[str]) -> None:
        wait_until(lambda: self.waiting() >= waiting, f"{waiting} programs run", process)


def program_of(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"{name} is not installed"
    return found


def session_of(leader: subprocess.Popen[str]) -> list[int]:
    """Processes of the session that `leader` began, itself among them while it runs; no corpses."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader.pid and state != "Z":
                found.append(int(stat.parent.name))
    return found


def after(command: Sequence[str], *words: str) -> list[str]:
    """What follows `words` in a command line."""
    start = next(n for n in range(len(command)) if list(command[n : n + len(words)]) == list(words))
    return list(command[start + len(words) :])
