"""The self-check on an arrangement that nobody has proved: as many rows as a library likes, all windows joined.

    python -m tests.selfcheck.trusting [key=value ...]

A product is computed before MKL's strict mode is asked for, so that the mode never comes into force.
"""

from __future__ import annotations

import os
from unittest import mock

import torch


def main() -> None:
    os.environ.pop("MKL_CBWR", None)
    torch.randn(64, 64) @ torch.randn(64, 64)
    from dlm.models.arithmetic import RowCounts
    from dlm.models.attention import SdpaAttention
    from dlm.selfcheck.__main__ import main as selfcheck

    every = RowCounts(tuple(range(1, 513)))
    with (
        mock.patch("dlm.models.arithmetic.kinds.row_counts", return_value=every),
        mock.patch("dlm.models.arrangement.choose_backend", return_value=SdpaAttention),
    ):
        selfcheck()


if __name__ == "__main__":
    main()
