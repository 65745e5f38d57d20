"""What holds for every script: shellcheck, strict mode, --help, and the bits to run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.cluster import LAUNCH, Cluster

SCRIPTS = sorted(path.relative_to(LAUNCH).as_posix() for path in LAUNCH.rglob("*") if path.suffix in (".sh", ".sbatch"))


def test_the_scripts_are_there() -> None:
    assert {"serve.sbatch", "serve.sh", "connect.sh", "predict.sbatch", "predict_array.sbatch", "torchrun.sh"} <= {
        *SCRIPTS
    }


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script: str) -> None:
    program = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([program, LAUNCH / script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_strict_and_can_be_run(script: str) -> None:
    text = (LAUNCH / script).read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in text
    assert os.access(LAUNCH / script, os.X_OK)
    assert "|| true" not in text


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_the_header(script: str, flag: str, cluster: Cluster) -> None:
    done = cluster.run(script, flag)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == (LAUNCH / script).read_text().splitlines()[1].removeprefix("# ")
    assert f"launch/{script}" in done.stdout
    assert not re.search(r"^(#SBATCH|set -)", done.stdout, re.MULTILINE)
    assert not cluster.log()


@pytest.mark.parametrize("script", SCRIPTS)
def test_variables_that_are_named_in_the_help_are_used(script: str) -> None:
    header, _, body = (LAUNCH / script).read_text().partition("\nset -euo pipefail\n")
    named = set(re.findall(r"\bDLM_[A-Z_]+", header)) - {"DLM_API_KEY"}
    assert all(name in body for name in named)
