"""What the checks use: launchers whose Python is a stand-in, and servers that the launchers have started."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from dlm.cli.command_line import compose_config
from dlm.serving.config import register, to_settings
from dlm.serving.settings import ServerSettings
from tests.launch.cluster import LAUNCH, Cluster, after
from tests.running import TIMEOUT, python, run, started, wait_until
from tests.serving.server import Server

MODEL = "LLaDA-8B-Instruct"
"""The name that the documents' examples use, for a copy of the demo."""


class Launchers:
    """`launch/serve.sh` and its neighbours, with stand-ins for Python, SLURM and SSH."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def local(self, *flags: str) -> tuple[DictConfig, ServerSettings]:
        """What `python -m dlm.serve` is told by `serve.sh --local`."""
        done = self.cluster.run("serve.sh", "--local", *flags)
        assert done.returncode == 0, done.stderr
        register()
        config = compose_config("serve", after(self.cluster.calls("python")[-1], "-m", "dlm.serve"))
        return config, to_settings(config)

    def slurm(self, *flags: str, **environment: str) -> list[str]:
        """The command line of sbatch that `serve.sh` comes to."""
        self.cluster.answer("sbatch", [0, "123\n"])
        done = self.cluster.run("serve.sh", *flags, **environment)
        assert done.returncode == 0, done.stderr
        assert "launch/connect.sh 123" in done.stdout
        return self.cluster.calls("sbatch")[-1]

    def refused(self, *flags: str) -> str:
        """What `serve.sh` says against flags."""
        done = self.cluster.run("serve.sh", *flags)
        assert done.returncode == 2
        return done.stderr


def make_dcp(model: str, folder: Path) -> None:
    """A distributed checkpoint of a model."""
    done = run(python("dlm.convert", "model=checkpoint", f"model.path={model}", f"output={folder}"), folder.parent)
    assert done.returncode == 0, done.stderr


@contextmanager
def launched(folder: Path, *flags: str) -> Iterator[Server]:
    """A server that `launch/serve.sh --local` has started in `folder`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", str(LAUNCH / "serve.sh"), "--local", *flags, "device=cpu"]
    with started(command, folder, PATH=path) as process:
        server = Server(process)
        readers = [threading.Thread(target=read, args=(server, pipe), daemon=True) for pipe in ("stdout", "stderr")]
        for reader in readers:
            reader.start()
        wait_until(lambda: bool(server.url) or process.poll() is not None, "the server was ready")
        assert server.url, "".join(server.lines)
        yield server
        stop(server)
        for reader in readers:
            reader.join(TIMEOUT)


def stop(server: Server) -> None:
    """End it, unless it has ended."""
    server.process.terminate()
    assert server.process.wait(TIMEOUT) == 0, "".join(server.lines)


def workers(server: Server) -> dict[int, str]:
    """Process ids of a fleet's workers, and their environment: the launcher has become the fleet itself."""
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = {int(child): Path(f"/proc/{child}/environ").read_text() for child in children}
    return {child: text for child, text in found.items() if "DLM_WORKER=" in text}


def read(server: Server, pipe: str) -> None:
    """Collect what it says."""
    for line in getattr(server.process, pipe):
        server.lines.append(line)
        found = re.search(r"ready url=(\S+)", line)
        if found:
            server.url = found[1]


def serve(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m dlm.serve` that ends by itself."""
    return run(python("dlm.serve", *arguments), cwd, **environment)
