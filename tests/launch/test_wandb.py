"""The sweep files: what W&B's own agent makes of them is a command that the program takes."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb import wandb_agent

from dlm.cli.command_line import compose_config
from dlm.cli.multirun import name_of
from dlm.evaluation.checks import check_evaluate
from dlm.evaluation.config import register
from dlm.evaluation.report import report_of
from dlm.evaluation.results import JUDGED, Result
from tests.launch.cluster import LAUNCH

SWEEPS = sorted((LAUNCH / "wandb").glob("*.yaml"))


STANDS_FOR = {"data.path=DATA": "data.path=questions.jsonl", "model.path=MODEL": "model.path=demo"}
"""What a user writes in place of a file's words."""


@pytest.fixture(autouse=True)
def _schemas() -> None:
    register()


def read(path: Path) -> dict[str, Any]:
    sweep: dict[str, Any] = yaml.safe_load(path.read_text())
    return sweep


def choices(sweep: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What W&B may choose: every combination of values, of intervals their ends."""
    each = [one["values"] if "values" in one else [one["min"], one["max"]] for one in sweep["parameters"].values()]
    for values in itertools.product(*each):
        yield dict(zip(sweep["parameters"], values, strict=True))


def started(sweep: dict[str, Any], chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that W&B's agent starts for these values."""
    commands: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **_: Any) -> None:
            commands.append(command)

    monkeypatch.setattr(wandb_agent, "AgentProcess", Process)
    monkeypatch.setenv("WANDB_RUN_ID", "set by the agent")  # so that it is taken back afterwards
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "set by the agent")
    agent = wandb_agent.Agent(None, None, sweep_id="abc")
    agent._sweep_command = list(sweep["command"])
    args = {name: {"value": value} for name, value in chosen.items()}
    agent._command_run({"run_id": "r1", "program": sweep["program"], "args": args})
    (command,) = commands
    return command


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_each_command_of_the_agent_is_one_that_its_program_takes(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    sweep = read(path)
    sweep["command"] = [STANDS_FOR.get(word, word) for word in sweep["command"]]
    (tmp_path / "questions.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    for chosen in choices(sweep):
        command = started(sweep, chosen, monkeypatch)
        assert command[:4] == ["/usr/bin/env", "python", "-m", "dlm.evaluate"]
        assert not any("${" in word for word in command)
        config = compose_config("evaluate", command[4:])
        check_evaluate(config, command[4:])
        assert config.logger._target_.endswith("WandbLogger")
        assert not config.logger.offline
        for name, value in chosen.items():
            place: Any = config
            for key in name.split("."):
                place = place[key]
            assert place == (None if value == "null" else value)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_no_value_is_one_that_the_agent_writes_as_another(path: Path) -> None:
    """It writes values with Python's `str`: None would arrive as the word None."""
    for chosen in choices(read(path)):
        assert None not in chosen.values()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_metric_is_one_that_a_run_logs(path: Path) -> None:
    result = Result("a", 0, None, JUDGED, right=True, text="x", tokens=4, nfe=2)
    figures = report_of("demo", [result], "pass", [1], 0.95).figures()
    name = read(path)["metric"]["name"].removeprefix("summary/")
    assert isinstance(figures[name], float)


@pytest.mark.parametrize(("name", "jobs"), [("thresholds", 12), ("schedules", 3)])
def test_the_command_without_a_server_is_one_that_evaluate_takes(name: str, jobs: int) -> None:
    header = (LAUNCH / "wandb" / f"{name}.yaml").read_text().partition("\nname:")[0]
    text = re.sub(r"^# ?", "", header, flags=re.MULTILINE).replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if line.strip().startswith("python -m dlm.evaluate -m"))
    typed = [word for word in shlex.split(line)[4:] if not word.startswith("hydra.")]
    each = [[f"{word.partition('=')[0]}={one}" for one in word.partition("=")[2].split(",")] for word in typed]
    folders = set()
    for job in itertools.product(*each):
        config = compose_config("evaluate", job)
        check_evaluate(config, job)
        assert config.logger.offline
        folders.add(name_of(job))
    assert len(folders) == jobs


def test_there_are_sweeps_and_nothing_of_them_is_left_in_the_environment() -> None:
    assert {path.stem for path in SWEEPS} == {"thresholds", "schedules", "search", "gsm8k"}
    assert "WANDB_RUN_ID" not in os.environ
