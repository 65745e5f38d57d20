"""Benchmarks: times the decoder on random weights and fixed workloads, against plain reference loops where there are
some (nothing is downloaded), and load-tests servers.

    python -m dlm.bench                         # the table of the README: small bodies with LLaDA's vocabulary
    python -m dlm.bench workload=smoke          # seconds, for CI
    python -m dlm.bench workload=quality        # the demo checkpoint's exact match and forwards, by algorithm
    python -m dlm.bench profile=true json=b.json
    python -m dlm.bench target=server url=http://127.0.0.1:8000

Reading order: `workloads` (what is decoded), `paced` (equal forwards for every sampler), `bounds.forwards` (which those
are), `reference` (the loops to compare with), `machine.rates` (what the machine can do), `bounds.ceiling` (what the
ratio could be), `bounds.floor` (what ours could be), `run` (the measurement), `machine.profile` (the bottleneck),
`report`; `quality` and its `variants`. `load` is separate: requests over HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

KEYS = """\
  workload=...             what to decode, see conf/workload/; quality checks answers instead of timing
  workload.engines=[..]    full, prefix_cache, dual_cache, vicinity, smooth, sparse, block_causal, causal_commit
  workload.samplers=[..]   fixed is the schedule itself; others run too, but reveal what it says
  workload.dtypes=[..]     float32, bfloat16
  workload.batches=[..]    canvases per batch of our decoder; the reference always has one
  workload.prompt_lengths=[..] workload.gen_lengths=[..]
  workload.deterministic=false  time a decoder whose bits may depend on the batch (prefix MKL_CBWR=AUTO)
  workload.algorithms=[..] with workload=quality: names, null for all; with target=server: names, default, all
  target=server            load a server: closed and open loop, streamed or not, mixed parameters
  url=http://..            that server; url=[http://a:8000,http://b:8000] alternates between several and prints ratios
  compare=batching         or start the servers to compare, see conf/compare/
  device=auto              auto, cpu or cuda; OMP_NUM_THREADS sets the CPU threads
  clock=wall               wall, or cpu: this process's own CPU time, for machines shared with others
  profile=false            also print where our time goes
  json=null                also write all results to this file
  DLM_API_KEY (environment) API key for the servers"""

EXAMPLES = """\
  python -m dlm.bench workload=smoke
  python -m dlm.bench workload.engines=[dual_cache] workload.dtypes=[bfloat16] profile=true
  python -m dlm.bench workload=samplers workload.batches=[16]
  python -m dlm.bench workload=quality workload.algorithms=[dual_cache,entropy_bound]
  python -m dlm.bench workload=llada_8b device=cuda json=bench.json
  python -m dlm.bench target=server url=http://127.0.0.1:8000 workload.concurrency=[64] workload.rates=[2,8]
  python -m dlm.bench target=server compare=batching"""


def main() -> None:
    """Run the command line."""
    from dlm.bench.config import register
    from dlm.cli.command_line import main as command_line

    command_line("bench", "dlm.bench", task, "Time the decoder, or load a server.", KEYS, EXAMPLES, register)


def task(config: DictConfig, overrides: Sequence[str]) -> int:
    """Run one bench; torch is imported only here, and only if needed."""
    from dlm.bench.config import to_bench

    bench = to_bench(config)
    if bench.target == "server":
        try:
            from dlm.bench.load.run import run_load
        except ModuleNotFoundError as error:
            from dlm.errors import MissingExtraError

            raise MissingExtraError(str(error.name), "serve", "load on a server") from error
        return run_load(bench)
    from dlm.bench.run import run

    return run(bench)


__all__ = [
    "bounds",
    "config",
    "load",
    "machine",
    "main",
    "paced",
    "quality",
    "reference",
    "report",
    "row",
    "run",
    "sides",
    "task",
    "variants",
    "workloads",
]
