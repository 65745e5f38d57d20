"""The router of a fleet: a process on loopback that is restarted when it dies, behind the gate."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dlm.distributed.processes import die_with_parent, free_port, send
from dlm.errors import MissingExtraError, RunError
from dlm.serving.fleet.gate import Gate
from dlm.serving.fleet.processes import answers, bind, end_of
from dlm.serving.settings import FleetSettings

PATIENCE = 3
"""Exits before its first response after which the fleet gives up."""


class Router:
    """The router process and its gate, which clients of a fleet connect to.

    Args:
        settings: of the fleet.
        ready: URLs of the workers that are ready now.
        log: file for the process's output.

    Raises:
        ConfigError: the port is taken.
        MissingExtraError: the router is not installed.
    """

    def __init__(self, settings: FleetSettings, ready: Callable[[], Sequence[str]], log: Path) -> None:
        found = shutil.which("vllm-router") or shutil.which("vllm-router", path=str(Path(sys.executable).parent))
        if found is None:
            raise MissingExtraError("vllm-router", "router", "a router in front of the workers")
        listening, port = bind(settings.host, settings.port), free_port()
        self.is_up = False
        """It has responded since its last start."""
        self._url, self._log = f"http://127.0.0.1:{port}", log
        self._command = settings.router_command(found, port, free_port())
        self._gate = Gate(listening, self._url, ready, settings)
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0

    def open(self) -> None:
        """Accept clients; until a worker is ready they get 503."""
        self._gate.open()

    def look(self) -> None:
        """Start the process, or restart it if it has exited; called once every worker has been ready. Raises
        `RunError`."""
        if self._process is None:
            self._start()
        elif self._process.poll() is not None:
            self._failures, self.is_up = self._failures + 1, False
            if self._failures >= PATIENCE:
                raise RunError(f"the router exited {PATIENCE} times; end of its log:\n{end_of(self._log)}")
            print(f"the router exited with {self._process.returncode}; restarting it", file=sys.stderr, flush=True)
            self._start()
        elif not self.is_up and answers(f"{self._url}/liveness"):
            self._failures, self.is_up = 0, True

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def close(self) -> None:
        """Shut down, allowing a few seconds for answers in progress."""
        self._gate.close()
        if self._process is None:
            return
        send(self._process, signal.SIGTERM)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            send(self._process, signal.SIGKILL)
            self._process.wait()
