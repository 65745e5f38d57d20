"""Several workers on one machine behind one router: started, watched, started again when they die, and all stopped.

Each worker is `python -m dlm.serve` in a process of its own, told by an environment variable which one it is.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from dlm.errors import ConfigError, MissingExtraError, RunError
from dlm.serving.settings import IDENTITY_VARIABLE, FleetSettings, Identity

LOOK_EVERY = 0.2
"""Seconds between two looks at the processes."""
PATIENCE = 3
"""Times that a worker may die before it is ready; then the fleet gives up."""
GRACE = 15.0
"""Seconds beyond `drain_timeout` that a worker has to end."""


@dataclass
class Worker:
    """One worker process.

    Attributes:
        index, url: which, and where it listens.
        process: it; None before the first start.
        ready: it has answered that it is.
        restarts: how often it was started again.
        failures: deaths since it was last ready.
        not_before: `time.monotonic()` before which it is not started again.
    """

    index: int
    url: str
    process: subprocess.Popen[bytes] | None = None
    ready: bool = False
    restarts: int = 0
    failures: int = 0
    not_before: float = 0.0


class Fleet:
    """The processes of one server.

    Args:
        settings: how many, where, and behind which router.
        overrides: of the command line, which each worker gets too.
        drain_timeout: seconds that a worker has to finish what runs.
    """

    def __init__(self, settings: FleetSettings, overrides: Sequence[str], drain_timeout: float) -> None:
        self.settings, self.drain_timeout = settings, drain_timeout
        self._overrides = [one for one in overrides if one.partition("=")[0] not in settings.own_keys]
        urls = [f"http://127.0.0.1:{settings.worker_base_port + index}" for index in range(settings.devices)]
        self.workers = [Worker(index, url) for index, url in enumerate(urls)]
        self.folder = Path(settings.run_dir)
        self._router: subprocess.Popen[bytes] | None = None
        self._router_failures = 0
        self._stop = threading.Event()

    def run(self) -> int:
        """Serve until SIGTERM or Ctrl-C; returns the exit code: 0 when all ended as they should.

        Raises:
            ConfigError: a port is taken.
            MissingExtraError: the router is not installed.
            RunError: a worker dies again and again before it is ready; with the end of its log.
        """
        router = shutil.which("vllm-router") or shutil.which("vllm-router", path=str(Path(sys.executable).parent))
        if router is None:
            raise MissingExtraError("vllm-router", "router", "a server of several workers")
        for port in (self.settings.port, *(self.settings.worker_base_port + one.index for one in self.workers)):
            _check_free(self.settings.host if port == self.settings.port else "127.0.0.1", port)
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: self._stop.set())
        self._tell("starting")
        try:
            while not self._stop.wait(LOOK_EVERY):
                self._look_after_workers()
                self._look_after_router(router)
        finally:
            self._tell("draining")
            codes = self._end()
            self._tell("stopped")
        return 0 if all(code == 0 for code in codes) else 1

    # While it runs

    def _look_after_workers(self) -> None:
        for worker in self.workers:
            if worker.process is None or worker.process.poll() is not None:
                self._revive(worker)
            elif not worker.ready and _is_ready(worker.url):
                worker.ready, worker.failures = True, 0
                print(f"worker {worker.index} is ready: {worker.url}", flush=True)
                self._tell(self._status())

    def _revive(self, worker: Worker) -> None:
        now = time.monotonic()
        if worker.process is not None:
            code, worker.process = worker.process.returncode, None
            worker.failures += 0 if worker.ready else 1
            worker.ready = False
            worker.restarts += 1
            worker.not_before = now + min(10.0, worker.failures * 1.0)
            print(f"worker {worker.index} ended with {code}; starting it again", file=sys.stderr, flush=True)
            self._tell(self._status())
        if worker.failures >= PATIENCE:
            tail = self._tail(f"worker_{worker.index}")
            raise RunError(f"worker {worker.index} ended {PATIENCE} times before it was ready; its log ends:\n{tail}")
        if now >= worker.not_before:
            self._start(worker)

    def _start(self, worker: Worker) -> None:
        settings = self.settings
        identity = Identity(
            worker.index, len(self.workers), tuple(one.url for one in self.workers), worker.restarts, os.getpid()
        )
        environment = {**os.environ, IDENTITY_VARIABLE: identity.text()}
        if settings.gpu_ids:
            environment["CUDA_VISIBLE_DEVICES"] = str(settings.gpu_ids[worker.index])
        elif count_gpus():
            environment["CUDA_VISIBLE_DEVICES"] = str(worker.index)
        port = settings.worker_base_port + worker.index
        command = [sys.executable, "-m", "dlm.serve", *self._overrides, "devices=1", "host=127.0.0.1", f"port={port}"]
        with self._log(f"worker_{worker.index}").open("ab") as log:
            worker.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _look_after_router(self, program: str) -> None:
        """Start it when every worker is ready for the first time, and again when it dies."""
        if self._router is not None and self._router.poll() is not None:
            self._router_failures += 1
            if self._router_failures >= PATIENCE:
                raise RunError(f"the router ended {PATIENCE} times; its log ends:\n{self._tail('router')}")
            print(f"the router ended with {self._router.returncode}; starting it again", file=sys.stderr, flush=True)
        elif self._router is not None or not all(worker.ready for worker in self.workers):
            return
        with self._log("router").open("ab") as log:
            self._router = subprocess.Popen(
                self.settings.router_command(program, [worker.url for worker in self.workers], free_port()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        while self._router.poll() is None and not self._stop.is_set():
            if _answers(f"{self.settings.url}/health"):
                self._router_failures = 0
                print(f"ready url={self.settings.url} workers={len(self.workers)}", flush=True)
                self._tell(self._status())
                return
            time.sleep(LOOK_EVERY)

    def _status(self) -> str:
        good = self._router is not None and all(worker.ready for worker in self.workers)
        return "ready" if good else "degraded" if self._router is not None else "starting"

    # The end

    def _end(self) -> list[int]:
        """Stop all; exit codes of the workers. Those that were not started count as 0."""
        running = [worker.process for worker in self.workers if worker.process is not None]
        for process in running:
            _signal(process, signal.SIGTERM)
        until = time.monotonic() + self.drain_timeout + GRACE
        codes = []
        for process in running:
            try:
                codes.append(process.wait(max(0.1, until - time.monotonic())))
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)
                codes.append(process.wait())
        if self._router is not None:
            _signal(self._router, signal.SIGTERM)
            try:
                self._router.wait(5)
            except subprocess.TimeoutExpired:
                _signal(self._router, signal.SIGKILL)
                self._router.wait()
        return codes

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _tail(self, name: str) -> str:
        return "\n".join(self._log(name).read_text(errors="replace").splitlines()[-12:])

    def _tell(self, status: str) -> None:
        """Write `server.json`, whole or not at all."""
        facts = {
            "host": self.settings.host,
            "port": self.settings.port,
            "pid": os.getpid(),
            "workers": [worker.url for worker in self.workers],
            "model": self.settings.model,
            "status": status,
        }
        path = self.folder / "server.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(facts, indent=1) + "\n")
        draft.replace(path)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def count_gpus() -> int:
    """GPUs of this machine, without opening one."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _die_with_parent() -> None:
    """In a new process on Linux: SIGTERM when the parent ends, however it ends (prctl 1, PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _check_free(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"host={host} port={port}: {error.strerror}; choose another port or worker_base_port"
            ) from error


def _is_ready(url: str) -> bool:
    return _answers(f"{url}/ready")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _signal(process: subprocess.Popen[bytes], signum: int) -> None:
    if process.poll() is None:
        process.send_signal(signum)
