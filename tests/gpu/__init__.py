"""What only a GPU shows: `pytest -m gpu tests/gpu`. Skipped where there is none."""

from __future__ import annotations

import pytest
import torch

ON_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = torch.device("cuda")
