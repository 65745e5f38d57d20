"""Times the decoder against a plain reference loop, on random weights and fixed workloads; nothing is downloaded.

    python -m dlm.bench                         # the table of the README: a small body with LLaDA's vocabulary
    python -m dlm.bench workload=smoke          # seconds, for CI
    python -m dlm.bench profile=true json=b.json

Reading order: `workloads` (what is decoded), `reference` (the loop it is compared with), `rates` (what the machine can
do), `ceiling` (what the ratio could be), `run` (the measurement), `profile` (what binds), `report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

KEYS = """\
  workload=...           what is decoded, see conf/workload/
  workload.engines=[..]  any of full, prefix_cache, dual_cache
  workload.dtypes=[..]   any of float32, bfloat16
  workload.batches=[..]  how many canvases our decoder holds; the reference always has one
  device=auto            auto, cpu or cuda; the CPU threads are those of OMP_NUM_THREADS
  clock=wall             wall, or cpu: this process's own processor time, where others use the machine too
  profile=false          after the table, where our time goes
  json=null              also write everything to this file"""

EXAMPLES = """\
  python -m dlm.bench workload=smoke
  python -m dlm.bench workload.engines=[dual_cache] workload.dtypes=[bfloat16] profile=true
  python -m dlm.bench workload=llada_8b device=cuda json=bench.json"""


def main() -> None:
    """The command line."""
    from dlm.bench.config import register
    from dlm.command_line import main as command_line

    register()
    command_line("bench", "dlm.bench", task, "Time the decoder against a plain reference loop.", KEYS, EXAMPLES)


def task(config: DictConfig, overrides: Sequence[str]) -> int:
    """Run one bench; torch is imported here, not before."""
    from dlm.bench.config import to_bench
    from dlm.bench.run import run

    return run(to_bench(config))
