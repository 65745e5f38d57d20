"""`python -m dlm.selfcheck` (see `--help`)."""

from __future__ import annotations

import time
from collections.abc import Sequence

from omegaconf import DictConfig

from dlm.cli import command_line
from dlm.errors import ConfigError
from dlm.selfcheck.config import check, register

TITLE = "Prove that answers on this CPU do not depend on what they are batched with. Without arguments: the demo."
KEYS = """\
  model=checkpoint model.path=folder       your checkpoint; its own shapes are tested
  model=random model.size=57m              random weights of a size
  dtypes=[float32,bfloat16]                each is checked separately
  threads=2                                null: torch's default
  seconds=40                               approximate duration; less covers less; the coverage is printed"""
EXAMPLES = """\
  python -m dlm.selfcheck
  python -m dlm.selfcheck model=random model.size=300m threads=1
  python -m dlm.selfcheck model=checkpoint model.path=folder dtypes=[bfloat16]"""


def main() -> None:
    command_line.main("selfcheck", "dlm.selfcheck", run, TITLE, KEYS, EXAMPLES, register)


def run(config: DictConfig, overrides: Sequence[str]) -> int:
    """Run the configured checks; 0 if the guarantee holds, 1 if not."""
    check(config)
    import torch

    from dlm.config.build import instantiate
    from dlm.selfcheck.checks import prove
    from dlm.selfcheck.report import SelfCheckReport

    sources = [instantiate(config.model, dtype=dtype) for dtype in config.dtypes]
    faults = sources[0].faults()
    if faults:
        raise ConfigError("; ".join(faults))
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    report = SelfCheckReport()
    for source in sources:
        begun = time.monotonic()
        checkpoint = source.load(torch.device("cpu"))
        report.begin(checkpoint)
        left = max(1.0, config.seconds / len(sources) - (time.monotonic() - begun))
        for result in prove(checkpoint, left, config.seed):
            report.add(result)
    return report.conclude()


if __name__ == "__main__":
    main()
