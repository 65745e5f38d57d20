"""A short tier of the tests of bits as on other processors (all of them: `python -m tests.processors`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processors.settings import changed, digests, environment, settings

CHOSEN = ("MKL as on Intel's, no strict mode", "MKL AVX2, no strict mode", "oneDNN AVX2", "ATen default")
SHORT = (
    "tests/models/arithmetic/test_kinds.py::test_a_row_has_the_same_bits_in_batches_of_every_length[1920-640-torch.float32-2]",
    "tests/models/arithmetic/test_kinds.py::test_a_row_has_the_same_bits_in_batches_of_every_length[192-64-torch.bfloat16-1]",
    "tests/models/arithmetic/test_kinds.py::test_an_activation_does_not_depend_on_its_place[1001-torch.float32-2]",
    "tests/decoding/scoring/test_bits.py::test_rows_of_every_kind",
    "tests/decoding/test_invariance.py::test_invariance_under_two_threads[llada2-bfloat16]",
    "tests/decoding/test_invariance.py::test_invariance_under_two_threads[odd-float64]",
)


@pytest.fixture(scope="module")
def plain() -> dict[str, str]:
    return digests({})


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOSEN)
def test_the_promise_holds_as_on_another_processor(name: str, plain: dict[str, str], tmp_path: Path) -> None:
    known = settings(tmp_path)
    if name not in known:
        pytest.skip("this is such a processor, or has no C compiler to become one")
    if not changed(known[name], plain):
        pytest.skip(f"{name} changes no bits here")
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SHORT]
    done = subprocess.run(run, env=environment(known[name]), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_equal_environments_have_equal_digests(plain: dict[str, str]) -> None:
    assert not changed({}, plain)
