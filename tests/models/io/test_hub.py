"""Fetching a pinned revision from a stand-in hub on loopback, also when it answers 429."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dlm.errors import CheckpointError
from dlm.models.io import hub as module
from dlm.models.io.hub import ATTEMPTS, PATIENCE_SECONDS
from tests.clock import Clock
from tests.models.checkpoints import copy_golden, golden_tensors, save_dcp
from tests.models.stand_in_hub import COMMIT, TAG, Hub, serving
from tests.running import TIMEOUT, environment

REPO = "owner/tiny"

PROGRAM = """
import json, sys, time
waits = []
time.sleep = waits.append
import torch
from dlm.errors import CheckpointError
from dlm.models.io.model_source import CheckpointSource
source = CheckpointSource(**json.loads(sys.argv[1]))
try:
    backbone = source.load(torch.device("cpu")).backbone
    print(json.dumps({"sum": float(backbone.embedding.weight.double().sum()), "waits": waits}))
except CheckpointError as error:
    print(json.dumps({"error": str(error), "waits": waits}))
"""
"""Loads a model in a process of its own, since huggingface_hub reads HF_ENDPOINT when it is imported. It does not wait,
it says how long it would have waited."""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = copy_golden(tmp_path / "repository")
    (folder / "modeling_tiny.py").write_text("raise SystemExit('code from the hub was run')")
    return folder


def load(hub: Hub, cache: Path, token: str | None = None, **source: Any) -> dict[str, Any]:
    """What `PROGRAM` prints."""
    extra = {} if token is None else {"HF_TOKEN": token}
    foreign = ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY")
    env = {key: value for key, value in environment().items() if key not in foreign}
    env.update(extra, HF_ENDPOINT=hub.endpoint, HF_HOME=str(cache), HF_HUB_DISABLE_TELEMETRY="1", NO_PROXY="127.0.0.1")
    command = [sys.executable, "-c", PROGRAM, json.dumps(source)]
    result = subprocess.run(command, capture_output=True, text=True, env=env, timeout=TIMEOUT, check=False)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def golden_sum() -> float:
    return float(golden_tensors()["model.transformer.wte.weight"].double().sum())


@pytest.mark.parametrize("revision", [COMMIT, TAG])
def test_a_pinned_revision_is_fetched_without_code_and_once(repository: Path, tmp_path: Path, revision: str) -> None:
    with serving(Hub(REPO, repository)) as hub:
        found = load(hub, tmp_path / "cache", token="hf_mine", path=REPO, revision=revision)
        assert found == {"sum": golden_sum(), "waits": []}
        assert hub.tokens == {"Bearer hf_mine"}
        assert {"config.json", "model.safetensors"} <= hub.served()
        assert not any(path.endswith(".py") for _, path, _ in hub.asked)
        before = sum(path.endswith("model.safetensors") for _, path, _ in hub.asked)
        assert load(hub, tmp_path / "cache", path=REPO, revision=revision)["sum"] == golden_sum()
        assert sum(path.endswith("model.safetensors") for _, path, _ in hub.asked) == before


def test_for_a_distributed_checkpoint_no_weights_are_fetched(repository: Path, tmp_path: Path) -> None:
    weights = save_dcp(golden_tensors(), tmp_path / "dcp")
    with serving(Hub(REPO, repository)) as hub:
        found = load(hub, tmp_path / "cache", dcp_path=str(weights), base_model=REPO, revision=COMMIT)
        assert found["sum"] == golden_sum()
        assert "config.json" in hub.served()
        assert not any(path.endswith(".safetensors") for _, path, _ in hub.asked)


@pytest.mark.parametrize("revision", [COMMIT, TAG])
def test_refused_requests_are_repeated_after_the_time_asked_for(
    repository: Path, tmp_path: Path, revision: str
) -> None:
    with serving(Hub(REPO, repository, refusals=2, retry_after=7)) as hub:
        found = load(hub, tmp_path / "cache", path=REPO, revision=revision)
        assert found["sum"] == golden_sum()
        assert hub.refused.total() >= 6
        assert len([seconds for seconds in found["waits"] if seconds >= 7]) >= 2


def test_a_hub_that_refuses_for_ever_is_given_up(repository: Path, tmp_path: Path) -> None:
    with serving(Hub(REPO, repository, refusals=10**9, retry_after=1)) as hub:
        found = load(hub, tmp_path / "cache", path=REPO, revision=COMMIT)
        for said in (REPO, COMMIT, "429", "Try later", "HF_TOKEN", "model.path=<folder>"):
            assert said in found["error"]
        assert ATTEMPTS <= len(hub.asked) <= 50
        assert sum(found["waits"]) <= PATIENCE_SECONDS


def test_a_revision_that_does_not_exist_is_named_and_not_repeated(repository: Path, tmp_path: Path) -> None:
    with serving(Hub(REPO, repository)) as hub:
        found = load(hub, tmp_path / "cache", path=REPO, revision="v9")
        assert f"cannot fetch {REPO!r} at revision 'v9': RevisionNotFoundError" in found["error"]
        assert found["waits"] == []


class Refusal(Exception):
    """What an HTTP client raises for a 429."""

    def __init__(self, retry_after: str | None) -> None:
        self.response = type("Response", (), {"status_code": 429, "headers": {"Retry-After": retry_after or ""}})()


@pytest.mark.parametrize(
    ("asked", "waits"),
    [(None, [2.0, 4.0, 8.0]), ("30", [30.0, 30.0, 30.0]), ("290", [290.0, 290.0]), ("3600", [])],
)
def test_attempts_and_their_time_are_bounded(
    asked: str | None, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)

    def refuse() -> str:
        raise Refusal(asked)

    with pytest.raises(Refusal):
        module._patiently(refuse)
    assert clock.waits == waits
    assert clock.now <= PATIENCE_SECONDS


def test_another_error_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)

    def fail() -> str:
        raise CheckpointError("broken")

    with pytest.raises(CheckpointError, match="broken"):
        module._patiently(fail)
    assert clock.waits == []
