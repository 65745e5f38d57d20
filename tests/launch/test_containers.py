"""The image, the services that are made of it, and what Prometheus reads of them: they parse and agree."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from dlm.cli.command_line import compose_config
from dlm.serving.config import register, to_fleet, to_settings
from tests.launch.cluster import LAUNCH

ROOT = LAUNCH.parent
WORKERS = ("worker0", "worker1")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    text = (LAUNCH / "compose.yaml").read_text()
    filled = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", text)  # as without any variable
    assert "$" not in re.sub("#.*", "", filled), "every variable has a default"
    found: dict[str, Any] = yaml.safe_load(filled)
    return found


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """Instructions and what they are given; comments and continued lines are resolved."""
    lines = [line for line in (LAUNCH / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, given) for name, _, given in (line.partition(" ") for line in joined.splitlines() if line)]


def test_hadolint_finds_nothing() -> None:
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, LAUNCH / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_is_built_from_what_is_there(dockerfile: list[tuple[str, str]]) -> None:
    copied = [word for name, given in dockerfile if name == "COPY" for word in given.split()[:-1]]
    sources = [word for word in copied if not word.startswith(("--", "/"))]
    assert {"pyproject.toml", "dlm", "conf", "constraints.txt"} <= {*sources}
    assert all((ROOT / word).exists() for word in sources)
    [extras] = re.findall(r"\$\{wheel\}\[([\w,]+)\]", " ".join(given for name, given in dockerfile if name == "RUN"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"serve", "router"} <= {*extras.split(",")} <= {*project["optional-dependencies"]}


def test_the_image_runs_the_server_as_nobody_special(dockerfile: list[tuple[str, str]]) -> None:
    register()
    given = dict(dockerfile)
    assert given["USER"] == "1000"
    program, _, module, *arguments = json.loads(given["ENTRYPOINT"])
    assert (program, module) == ("python", "dlm.serve")
    settings = compose_config("serve", arguments)
    assert f":{settings.port}/health" in given["HEALTHCHECK"]
    assert (settings.host, str(settings.port)) == ("0.0.0.0", given["EXPOSE"])


def test_every_service_has_arguments_that_dlm_serve_takes(compose: dict[str, Any]) -> None:
    register()
    fleets = {}
    for name in (*WORKERS, "router"):
        service = compose["services"][name]
        config = compose_config("serve", ["host=0.0.0.0", *service["command"]])
        fleets[name] = to_fleet(config, to_settings(config))
        assert service["build"] == {"context": "..", "dockerfile": "launch/Dockerfile"}
        assert float(service["stop_grace_period"].removesuffix("s")) > config.drain_timeout
    router = fleets.pop("router")
    assert (router.router, router.port) == ("only", 8000)
    for index, one in enumerate(fleets.values()):
        assert (one.router, one.peers, one.first_worker) == ("none", router.peers, index)
    assert router.peers == tuple(f"http://{name}:{one.worker_base_port}" for name, one in fleets.items())


def test_workers_are_ready_before_the_router_starts(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services["router"]["depends_on"] == {name: {"condition": "service_healthy"} for name in WORKERS}
    for name in WORKERS:
        assert services[name]["expose"] == ["8001"]
        assert "http://127.0.0.1:8001/ready" in services[name]["healthcheck"]["test"][-1]
    devices = [services[name]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for name in WORKERS]
    assert devices == [["0"], ["1"]]


def test_services_use_what_is_declared_and_only_this_machine_gets_in(compose: dict[str, Any]) -> None:
    volumes = {one.split(":")[0] for service in compose["services"].values() for one in service.get("volumes", [])}
    assert {one for one in volumes if not one.startswith(".")} == {*compose["volumes"]}
    assert all((LAUNCH / one).exists() for one in volumes if one.startswith("."))
    ports = [one for service in compose["services"].values() for one in service.get("ports", [])]
    assert ports
    assert all(one.startswith("127.0.0.1:") for one in ports)


def test_secrets_are_handed_through_and_not_written_down(compose: dict[str, Any]) -> None:
    for name in (*WORKERS, "router"):
        assert compose["services"][name]["environment"] == ["DLM_API_KEY", "HF_TOKEN"]
    assert compose["secrets"] == {"dlm_api_key": {"environment": "DLM_API_KEY"}}
    assert compose["services"]["prometheus"]["secrets"] == ["dlm_api_key"]


def test_prometheus_reads_each_worker_with_the_key(compose: dict[str, Any]) -> None:
    [job] = yaml.safe_load((LAUNCH / "prometheus.yaml").read_text())["scrape_configs"]
    router = compose["services"]["router"]["command"]
    [urls] = [one.partition("=")[2].strip("[]") for one in router if one.startswith("worker_urls=")]
    assert job["static_configs"] == [{"targets": [urlsplit(url).netloc for url in urls.split(",")]}]
    assert job["authorization"] == {"credentials_file": "/run/secrets/dlm_api_key"}
    service = compose["services"]["prometheus"]
    mounted = dict(one.split(":")[:2] for one in service["volumes"])
    assert f"--config.file={mounted['./prometheus.yaml']}" in service["command"]
