"""One worker process: bind, load, warm up, serve, and on SIGTERM or Ctrl-C finish running requests."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from dlm.models.io.model_source import ModelSource
from dlm.serving.app import build_app
from dlm.serving.engine.service import Service
from dlm.serving.engine.state import ServerState
from dlm.serving.fleet.processes import many_files
from dlm.serving.http.slow_clients import patient_for
from dlm.serving.logs import set_up_logs
from dlm.serving.settings import ServerSettings, near

log = logging.getLogger("dlm.serving")

LOOK_EVERY = 0.5
"""Seconds between two checks of the decoder thread."""


def url_of(listening: socket.socket) -> str:
    """URL of a listening socket, for clients on this machine."""
    return near(*listening.getsockname()[:2])


def serve(
    source: ModelSource,
    settings: ServerSettings,
    listening: socket.socket,
    tell: Callable[[ServerState], None] = lambda state: None,
) -> int:
    """Serve until stopped; returns the exit code: 0 if every request was finished, else 1.

    Args:
        source: of the model.
        settings: of the server.
        listening: from `bind`.
        tell: called on each change of the worker's state.

    Raises `DLMError` if the model cannot be loaded.
    """
    set_up_logs(settings.log_format)
    state = ServerState(url=url_of(listening))
    tell(state)
    try:
        service = Service.open(source, settings)
        service.warm_up()
        service.thread.start()
        with many_files():
            code = asyncio.run(_Worker(service, state, listening, tell).run())
        service.close()
    finally:
        listening.close()
        state.name = "stopped"
        tell(state)
    return code


class _Worker:
    """The part that runs in the event loop."""

    def __init__(
        self, service: Service, state: ServerState, listening: socket.socket, tell: Callable[[ServerState], None]
    ) -> None:
        self.service, self.state, self.listening, self.tell = service, state, listening, tell
        settings = service.settings
        config = uvicorn.Config(
            build_app(service, state),
            http=patient_for(settings.header_timeout),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(settings.drain_timeout) + 5,
            h11_max_incomplete_event_size=64 * 1024,
        )
        self.server = _Server(config)
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Serve until stopped; returns the exit code."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop.set)
        serving = asyncio.create_task(self.server.serve([self.listening]))
        while not self.server.started and not serving.done():
            await asyncio.sleep(0.01)
        self._be("ready")
        log.info("ready", extra={"facts": {"url": self.state.url, "model": self.service.settings.names[0]}})
        stopping = asyncio.create_task(self._stop.wait())
        while not stopping.done() and not serving.done() and self.service.thread.load().alive:
            await asyncio.wait({stopping, serving}, timeout=LOOK_EVERY, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        failed = not self.service.thread.load().alive
        self._be("draining")
        finished = await asyncio.to_thread(self.service.thread.drain, self.service.settings.drain_timeout)
        self.server.should_exit = True
        await serving
        if not finished:
            log.warning("some requests were not finished within drain_timeout")
        return 0 if finished and not failed else 1

    def _be(self, name: str) -> None:
        self.state.name = name
        self.tell(self.state)


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: the worker installs its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
