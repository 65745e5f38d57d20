"""Times the decoder on random weights and fixed workloads, and against plain reference loops; nothing is downloaded.
Loads servers, and compares them.

    python -m dlm.bench                         # the table of the README: small bodies with LLaDA's vocabulary
    python -m dlm.bench workload=smoke          # seconds, for CI
    python -m dlm.bench workload=quality        # the demo checkpoint's exact match and forwards, by algorithm
    python -m dlm.bench profile=true json=b.json
    python -m dlm.bench target=server url=http://127.0.0.1:8000

Reading order: `workloads` (what is decoded), `paced` (equal forwards for every sampler), `forwards` (which those are),
`reference` (the loops it is compared with), `rates` (what the machine can do), `ceiling` (what the ratio could be),
`floor` (what ours could be), `run` (the measurement), `profile` (what binds), `report`; `quality` and its `variants`.
`load` is a house of its own: requests over HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

KEYS = """\
  workload=...             what is decoded, see conf/workload/; quality is not timed but checked
  workload.engines=[..]    full, prefix_cache, dual_cache, vicinity, smooth, sparse, block_causal, causal_commit
  workload.samplers=[..]   fixed is the schedule itself; others do their work and reveal what it says
  workload.dtypes=[..]     float32, bfloat16
  workload.batches=[..]    how many canvases our decoder holds; the reference always has one
  workload.prompt_lengths=[..] workload.gen_lengths=[..]
  workload.deterministic=false  times a decoder whose bits may depend on the batch (with MKL_CBWR=AUTO before it)
  workload.algorithms=[..] of workload=quality: names, null for all; of target=server: names, default, all
  target=server            load a server: closed and open loop, streamed or not, mixed parameters
  url=http://..            of that server; url=[http://a:8000,http://b:8000] asks several by turns and shows ratios
  compare=batching         or: start servers for it, see conf/compare/
  device=auto              auto, cpu or cuda; the CPU threads are those of OMP_NUM_THREADS
  clock=wall               wall, or cpu: this process's own processor time, where others use the machine too
  profile=false            after the table, where our time goes
  json=null                also write everything to this file
  DLM_API_KEY (environment) the key that servers ask for"""

EXAMPLES = """\
  python -m dlm.bench workload=smoke
  python -m dlm.bench workload.engines=[dual_cache] workload.dtypes=[bfloat16] profile=true
  python -m dlm.bench workload=samplers workload.batches=[16]
  python -m dlm.bench workload=quality workload.algorithms=[dual_cache,entropy_bound]
  python -m dlm.bench workload=llada_8b device=cuda json=bench.json
  python -m dlm.bench target=server url=http://127.0.0.1:8000 workload.concurrency=[64] workload.rates=[2,8]
  python -m dlm.bench target=server compare=batching"""


def main() -> None:
    """The command line."""
    from dlm.bench.config import register
    from dlm.cli.command_line import main as command_line

    command_line("bench", "dlm.bench", task, "Time the decoder, or load a server.", KEYS, EXAMPLES, register)


def task(config: DictConfig, overrides: Sequence[str]) -> int:
    """Run one bench; torch is imported here, not before, and only where it is needed."""
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
