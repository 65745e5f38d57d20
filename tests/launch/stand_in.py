"""One program under many names: what a launcher calls instead of SLURM, SSH and Python (see `cluster.py`).

Each call is a line of `calls.jsonl`. What squeue, sbatch and the like answer is in `<name>.json`, a list of
`[exit code, output]`, one a call, the last for all further ones.

FAKE_RUNS: Python runs until it gets a signal. FAKE_CODE: its exit code. FAKE_DEAD=none:7: the server with `router=none`
ends with 7 as soon as the other one runs. FAKE_REFUSED: no machine is reached by SSH. FAKE_KEY, FAKE_HEALTH: key and
health of the server behind a tunnel.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

HOME = Path(os.environ["STAND_INS"])
NAME, ARGUMENTS = Path(sys.argv[0]).name, sys.argv[1:]
WATCHED = ("DLM_", "SLURM_", "SRUN_", "HF_TOKEN", "MASTER_", "OPENAI_BASE_URL")


def note(event: str) -> None:
    seen = {key: value for key, value in os.environ.items() if key.startswith(WATCHED)}
    with open(HOME / "calls.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"event": event, "program": NAME, "argv": ARGUMENTS, "env": seen}) + "\n")


def log() -> list[dict[str, Any]]:
    whole, _, _ = (HOME / "calls.jsonl").read_text().rpartition("\n")  # somebody may be writing the last line
    return [json.loads(line) for line in whole.splitlines()]


def value(key: str, default: str = "") -> str:
    """The argument `key=value`."""
    return next((one.partition("=")[2] for one in ARGUMENTS if one.startswith(f"{key}=")), default)


def reply() -> int:
    path = HOME / f"{NAME}.json"
    answers: list[tuple[int, str]] = json.loads(path.read_text()) if path.exists() else [(0, "")]
    calls = sum((line["event"], line["program"]) == ("called", NAME) for line in log())
    code, out = answers[min(calls, len(answers)) - 1]
    sys.stdout.write(out)
    return code


def until_told() -> int:
    """Run until a signal comes, and a moment longer; answers with FAKE_CODE."""

    def told(signum: int, frame: FrameType | None) -> None:
        note(signal.Signals(signum).name)
        time.sleep(0.2)  # whoever does not wait for it is seen to go on before it has ended
        note("ended")
        raise SystemExit(int(os.environ.get("FAKE_CODE", "0")))

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, told)
    note("waiting")
    while True:
        time.sleep(0.1)  # a signal that comes just before it is heard behind it


def new_step() -> tuple[int, TextIO]:
    """The number of a step that is started now, and the file for its processes, which ends with an empty line."""
    for step in itertools.count():
        with suppress(FileExistsError):
            return step, open(HOME / f"step-{step}", "x", encoding="utf-8")
    raise AssertionError("there are numbers enough")


def processes_of(step: Path) -> list[int]:
    """Those of a step; a step that is being started is waited for."""
    while not (text := step.read_text()).endswith("\n\n"):
        time.sleep(0.01)
    return [int(pid) for pid in text.split()]


def srun() -> int:
    """The command once a machine; the worst exit code. Like the real one it makes SIGKILL of the SIGTERM it gets."""
    command = ARGUMENTS[next(n for n, one in enumerate(ARGUMENTS) if not one.startswith("-")) :]
    nodes = 1 if "--ntasks=1" in ARGUMENTS else int(value("--nodes", os.environ["SLURM_NNODES"]))
    children: list[subprocess.Popen[bytes]] = []

    def kill(signum: int, frame: FrameType | None) -> None:
        for child in children:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    signal.signal(signal.SIGTERM, kill)
    step, file = new_step()
    with file:
        for node in range(nodes):
            place = {"SLURM_NODEID": str(node), "SLURM_STEP_ID": str(step)}
            children.append(subprocess.Popen(command, env={**os.environ, **place}, process_group=0))
            file.write(f"{children[-1].pid}\n")
        file.write("\n")
    codes = [child.wait() for child in children]
    return max(code if code >= 0 else 128 - code for code in codes)


def scancel() -> int:
    """`--signal=TERM JOB.STEP`: to all processes of the step, which srun is none of."""
    step = HOME / f"step-{ARGUMENTS[-1].partition('.')[2]}"
    if not step.exists():
        return reply()
    for pid in processes_of(step):
        os.killpg(pid, getattr(signal, f"SIG{value('--signal')}"))
    return 0


def python() -> int:
    if ARGUMENTS[0] == "-c":
        # The interpreter without its packages: what a script looks for is what the test has put into modules/.
        environment = {**os.environ, "PYTHONPATH": str(HOME / "modules")}
        return subprocess.run([sys.executable, "-S", *ARGUMENTS], env=environment, check=False).returncode
    role, _, code = os.environ.get("FAKE_DEAD", "").partition(":")
    if role and role == value("router"):
        while not any(line["event"] == "waiting" for line in log()):
            time.sleep(0.05)
        return int(code)
    return until_told() if "FAKE_RUNS" in os.environ else int(os.environ.get("FAKE_CODE", "0"))


def tunnel() -> int:
    """The near end of a tunnel, with the server at its far end."""
    if "FAKE_REFUSED" in os.environ:
        sys.stderr.write("ssh: connect to host n1 port 22: Connection refused\n")
        return 255
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            key = os.environ.get("FAKE_KEY")
            good = key is None or self.headers.get("Authorization") == f"Bearer {key}"
            codes = {"/health": int(os.environ.get("FAKE_HEALTH", "200")), "/v1/models": 200 if good else 401}
            self.send_response(codes[self.path])
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    address, port = ARGUMENTS[ARGUMENTS.index("-L") + 1].split(":")[:2]
    server = HTTPServer((address, int(port)), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return until_told()


def main() -> int:
    note("called")
    if NAME == "curl":
        os.execv(HOME / "curl", ["curl", *ARGUMENTS])
    if NAME in ("srun", "scancel", "python"):
        return {"srun": srun, "scancel": scancel, "python": python}[NAME]()
    if NAME != "ssh":
        return reply()
    if "-N" in ARGUMENTS:
        return tunnel()
    # A command on the login machine, which is this one.
    return 255 if "FAKE_REFUSED" in os.environ else subprocess.run(["bash", "-c", ARGUMENTS[-1]]).returncode


if __name__ == "__main__":
    sys.exit(main())
