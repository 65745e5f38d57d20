"""Every row of `docs/coming_from.md` is tried: its check is in `coming_from/`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import pytest

from dlm import LLM
from dlm.demo import CHECKPOINT
from tests.launch.cluster import Cluster
from tests.serving.coming_from import batch_server, library, multi_gpu, overview, quick_start
from tests.serving.coming_from.places import MODEL, Launchers, launched, make_dcp
from tests.serving.coming_from.table import CHECKS, TABLE, rows
from tests.serving.fleet.test_supervisor import free_ports
from tests.serving.server import Server

DOCUMENTS = (quick_start, overview, batch_server, multi_gpu, library)
SLOW = {"fleet", "short_fleet", "slow"}
"""Fixtures of checks that take seconds."""


@pytest.fixture(scope="module", name="workplace")
def folder_with_a_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coming_from")
    shutil.copytree(CHECKPOINT, folder / MODEL)
    return folder


@pytest.fixture(scope="module", name="model")
def path_of_the_model(workplace: Path) -> str:
    return str(workplace / MODEL)


@pytest.fixture(scope="module", name="dcp")
def distributed_checkpoint(workplace: Path, model: str) -> Path:
    make_dcp(model, workplace / "checkpoint.dcp")
    return workplace / "checkpoint.dcp"


@pytest.fixture(scope="module", name="alone")
def one_server(workplace: Path) -> Iterator[Server]:
    flags = ("--model-path", f"./{MODEL}", "--batch-size", "8", "--max-wait-time", "0.1", "--streaming")
    with launched(workplace, *flags, "--port", str(free_ports(1))) as server:
        yield server


@pytest.fixture(scope="module", name="fleet")
def two_workers(workplace: Path, dcp: Path) -> Iterator[Server]:
    model = ("--dcp-path", dcp.name, "--base-model", f"./{MODEL}", "run_dir=run")
    with launched(workplace, *model, "--gpu-ids", "0,2", "--health-check-interval", "1", *ports()) as server:
        yield server


@pytest.fixture(name="short_fleet")
def two_workers_that_end(tmp_path: Path) -> Iterator[Server]:
    with launched(tmp_path, "--model-path", "demo", "--gpus", "2", *ports(), "drain_timeout=600") as server:
        yield server


@pytest.fixture(name="launchers")
def launchers_with_stand_ins(cluster: Cluster) -> Launchers:
    return Launchers(cluster)


@pytest.fixture(name="cluster")
def stand_ins(tmp_path: Path) -> Cluster:
    folder = tmp_path / "cluster"
    folder.mkdir()
    return Cluster(folder)


@pytest.fixture(scope="module", name="llm")
def library_with_model(model: str) -> Iterator[LLM]:
    with LLM(model, enforce_eager=True, device="cpu") as llm:
        yield llm


@pytest.fixture
def slow() -> None:
    """For checks that take seconds by themselves."""


def ports() -> tuple[str, ...]:
    first = free_ports(3)
    return ("--port", str(first), "--worker-base-port", str(first + 1))


def checks() -> Iterator[object]:
    """A case for each check, named after the first of its rows."""
    for check in dict.fromkeys(CHECKS.values()):
        marks = [pytest.mark.slow, pytest.mark.long] if SLOW & signature(check).parameters.keys() else []
        yield pytest.param(check, id=f"{check.__module__.rpartition('.')[2]}-{check.__name__}", marks=marks)


def test_every_row_has_a_check_and_every_check_a_row() -> None:
    found = rows()
    assert len(found) == len(set(found)) > 90
    assert set(found) == set(CHECKS), f"{TABLE.name} and the checks differ"


@pytest.mark.parametrize("check", list(checks()))
def test_row(check: object, request: pytest.FixtureRequest) -> None:
    assert callable(check)
    check(**{name: request.getfixturevalue(name) for name in signature(check).parameters})
