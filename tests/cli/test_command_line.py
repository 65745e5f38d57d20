"""The command line answers quickly, and goes wrong without a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dlm.cli.command_line import quoted
from tests import running

HEAVY = "torch", "lightning", "transformers", "wandb"
"""What takes seconds to import, and is not needed to show something."""
SHOW = f"""
import sys
from importlib import import_module
main = import_module(sys.argv.pop(1)).main
try:
    main()
finally:
    print("heavy:", sorted({{*{HEAVY}}} & sys.modules.keys()), file=sys.stderr)
"""
"""Runs a program and says which of `HEAVY` it has imported."""


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--help"], "sampler     auto, credit, dinfer_threshold"),
        (["--cfg", "job"], "gen_length: 64"),
        (["--cfg", "job", "-p", "sampler"], "threshold: 0.9"),
        (["-p", "generation"], "block_length: 16"),
        (["--cfg", "job", "--resolve", "trainer=ddp", "trainer.devices=2"], "devices: 2"),
    ],
)
def test_showing_imports_nothing_heavy(arguments: list[str], shown: str, tmp_path: Path) -> None:
    done = running.run([sys.executable, "-c", SHOW, "dlm.predict", *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert "heavy: []" in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "module", ["dlm.predict", "dlm.evaluate", "dlm.serve", "dlm.train", "dlm.convert", "dlm.rl.grpo.__main__"]
)
def test_help_imports_nothing_heavy(module: str, tmp_path: Path) -> None:
    done = running.run([sys.executable, "-c", SHOW, module, "--help"], tmp_path)
    assert "heavy: []" in done.stderr, done.stderr


def test_checking_a_configuration_imports_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from dlm.cli.command_line import compose_config; from dlm.config.checks import check_predict\n"
        "check_predict(compose_config('predict', ['data=jsonl', f'data.path={__import__(\"os\").devnull}x'][:0]))\n"
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules)"
    )
    done = running.run([sys.executable, "-c", program], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["sampler.thresold=1"], 2, "ConfigError: sampler.thresold=1: sampler.thresold is no key"),
        (["data=jsonl"], 2, "data.path is not set"),
        (["trainer=gpuu"], 2, "trainer=gpuu is no choice; did you mean trainer=gpu?"),
    ],
)
def test_a_wrong_configuration_is_told_in_lines(arguments: list[str], code: int, said: str, tmp_path: Path) -> None:
    done = running.run(running.python("dlm.predict", *arguments), tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sampler=threshold", "sampler.nonsense=1"], "sampler.nonsense is no key; known here: sampler.threshold"),
        (["sampler=threshold,factor", "sampler.threshold=0.8"], "threshold is no key; known here: sampler.factor"),
        (["sampler=fixed", "sampler.steps=16,32"], "sampler.steps is no key; did you mean generation.steps?"),
        (["generation.seed=1,x"], "generation.seed=x: Value 'x' of type 'str' could not be converted to Integer"),
        (["trainer=cpu,gpuu"], "trainer=gpuu is no choice; did you mean trainer=gpu?"),
        (["+wrong=1,2"], "wrong is no key: known here: model, engine"),
        (["hydra.sweeep.dir=x"], "hydra.sweeep is no key"),
        (["generation.seed=1,2", "word"], "'word' is no key=value"),
    ],
)
def test_a_wrong_multirun_is_told_as_a_wrong_run(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = running.run(running.python("dlm.predict", "-m", *arguments), tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ConfigError: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_multirun_with_ddp_is_refused(tmp_path: Path) -> None:
    done = running.run(running.python("dlm.predict", "-m", "trainer=ddp", "generation.seed=1,2"), tmp_path)
    assert done.returncode == 2
    assert "would run the whole sweep again" in done.stderr


def test_a_command_is_quoted_for_the_shell() -> None:
    assert quoted(["a", "generation.stop=['\\n\\n', x]"]) == "a 'generation.stop=['\"'\"'\\n\\n'\"'\"', x]'"
