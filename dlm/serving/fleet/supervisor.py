"""Starts the workers behind one router, watches them, restarts them when they die, and stops them all.

Each worker is a `python -m dlm.serve` process that learns from an environment variable which worker it is. Workers
and router may belong to different fleets, on different machines: `router=none` and `router=only`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlm.distributed.processes import send
from dlm.errors import RunError
from dlm.serving.fleet.processes import answers, check_free, count_gpus, end_of
from dlm.serving.fleet.router import Router
from dlm.serving.settings import IDENTITY_VARIABLE, FleetSettings, Identity

LOOK_EVERY = 0.2
"""Seconds between two checks of the processes."""
PATIENCE = 3
"""Deaths of a worker before it is ready after which the fleet gives up."""
GRACE = 15.0
"""Seconds beyond `drain_timeout` that a worker has to exit."""


@dataclass
class Worker:
    """One worker.

    Attributes:
        index, url: its index among all workers, and its URL for the router.
        port: on this machine; 0 for a worker of another fleet.
        process: None before the first start, and for a worker of another fleet.
        ready: it has reported ready.
        looked: `time.monotonic()` of the last check of another fleet's worker.
        failures: deaths since it was last ready.
        not_before: `time.monotonic()` before which it is not restarted.
    """

    index: int
    url: str
    port: int
    process: subprocess.Popen[bytes] | None = None
    ready: bool = False
    looked: float = -math.inf
    failures: int = 0
    not_before: float = 0.0


class Fleet:
    """The processes of one server on this machine.

    Args:
        settings: how many, where, and behind which router.
        overrides: command-line overrides, passed on to each worker.
        drain_timeout: seconds that a worker has to finish running requests.

    Raises:
        ConfigError: the router's port is taken.
        MissingExtraError: the router is not installed.
    """

    def __init__(self, settings: FleetSettings, overrides: Sequence[str], drain_timeout: float) -> None:
        self.settings, self.drain_timeout = settings, drain_timeout
        self._overrides = [one for one in overrides if one.partition("=")[0] not in settings.own_keys]
        ports = [settings.worker_base_port + index for index in range(settings.devices)]
        if settings.router == "only":
            self.workers = [Worker(index, url, 0) for index, url in enumerate(settings.peers)]
        else:
            places = enumerate(ports, start=settings.first_worker)
            self.workers = [Worker(index, settings.peers[index], port) for index, port in places]
        self.folder = Path(settings.run_dir)
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        self.router = None if settings.router == "none" else Router(settings, self._ready, self._log("router"))
        self._complete = self._up = False
        """`_complete`: every worker has been ready once; `_up`: clients can be served."""
        self._started = 0.0
        self._stop = threading.Event()

    def run(self) -> int:
        """Serve until SIGTERM or Ctrl-C; returns the exit code: 0 if all workers exited with 0.

        Raises:
            ConfigError: a port is taken.
            RunError: the router or a worker died repeatedly before it was ready (with the end of its log), or the
                workers are not ready within `start_timeout`.
        """
        for port in [worker.port for worker in self.workers if worker.port]:
            check_free(self.settings.worker_host, port)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: self._stop.set())
        self._tell("starting")
        self._started = time.monotonic()
        try:
            if self.router is not None:
                self.router.open()
            while not self._stop.wait(LOOK_EVERY):
                self._look_after_workers()
                self._complete = self._complete or len(self._ready()) == len(self.workers)
                if self._complete and self.router is not None:
                    self.router.look()
                if self._complete and not self._up and (self.router is None or self.router.is_up):
                    self._say_ready()
        finally:
            self._tell("draining")
            codes = self._end()
            self._tell("stopped")
        return 0 if all(code == 0 for code in codes) else 1

    # While it runs

    def _look_after_workers(self) -> None:
        for worker in self.workers:
            if not worker.port:
                self._look_at(worker)
            elif worker.process is None or worker.process.poll() is not None:
                if not self._stop.is_set():  # else it got the signal too
                    self._revive(worker)
            elif not worker.ready and answers(f"{self.settings.own_url(worker.port)}/ready"):
                worker.failures = 0
                self._became(worker, True)
        late = [worker for worker in self.workers if not worker.ready]
        if late and not self._complete and time.monotonic() > self._started + self.settings.start_timeout:
            raise RunError(
                f"not ready within start_timeout={self.settings.start_timeout:g} seconds: "
                f"{', '.join(worker.url for worker in late)}; see the logs of these workers"
            )

    def _look_at(self, worker: Worker) -> None:
        """Poll another fleet's worker: often until it is ready, then at the router's health-check interval."""
        now = time.monotonic()
        if now >= worker.looked + (self.settings.health_check_interval if worker.ready else LOOK_EVERY):
            worker.looked = now
            ready = answers(f"{worker.url}/ready")
            if ready != worker.ready:
                self._became(worker, ready)

    def _became(self, worker: Worker, ready: bool) -> None:
        worker.ready = ready
        print(f"worker {worker.index} is {'ready' if ready else 'not ready'}: {worker.url}", flush=True)
        self._tell(self._status())

    def _revive(self, worker: Worker) -> None:
        now = time.monotonic()
        if worker.process is not None:
            code, worker.process = worker.process.returncode, None
            worker.failures += 0 if worker.ready else 1
            worker.ready = False
            worker.not_before = now + min(10.0, worker.failures * 1.0)
            print(f"worker {worker.index} exited with {code}; restarting it", file=sys.stderr, flush=True)
            self._tell(self._status())
        if worker.failures >= PATIENCE:
            end = end_of(self._log(f"worker_{worker.index}"))
            raise RunError(f"worker {worker.index} exited {PATIENCE} times before it was ready; end of its log:\n{end}")
        if now >= worker.not_before:
            self._start(worker)

    def _start(self, worker: Worker) -> None:
        settings = self.settings
        identity = Identity(worker.index, len(settings.peers), settings.peers, os.getpid())
        environment = {**os.environ, IDENTITY_VARIABLE: identity.text()}
        device = worker.index - settings.first_worker
        if settings.gpu_ids:
            environment["CUDA_VISIBLE_DEVICES"] = str(settings.gpu_ids[device])
        elif count_gpus():
            environment["CUDA_VISIBLE_DEVICES"] = str(device)
        place = (f"host={settings.worker_host}", f"port={worker.port}")
        command = [sys.executable, "-m", "dlm.serve", *self._overrides, "devices=1", *place]
        with self._log(f"worker_{worker.index}").open("ab") as log:
            worker.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _ready(self) -> list[str]:
        """URLs of the ready workers, as reached from this machine."""
        return [
            self.settings.own_url(worker.port) if worker.port else worker.url for worker in self.workers if worker.ready
        ]

    def _say_ready(self) -> None:
        self._up = True
        urls = " ".join(worker.url for worker in self.workers) if self.router is None else self.settings.url
        print(f"ready url={urls} workers={len(self.workers)}", flush=True)
        self._tell(self._status())

    def _status(self) -> str:
        if not self._up:
            return "starting"
        return "ready" if all(worker.ready for worker in self.workers) else "degraded"

    # The end

    def _end(self) -> list[int]:
        """Stop all; returns the exit codes of the workers that were started."""
        running = [worker.process for worker in self.workers if worker.process is not None]
        for process in running:
            send(process, signal.SIGTERM)
        until = time.monotonic() + self.drain_timeout + GRACE
        codes = []
        for process in running:
            try:
                codes.append(process.wait(max(0.1, until - time.monotonic())))
            except subprocess.TimeoutExpired:
                send(process, signal.SIGKILL)
                codes.append(process.wait())
        if self.router is not None:
            self.router.close()
        return codes

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _tell(self, status: str) -> None:
        """Write `server.json` atomically."""
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
