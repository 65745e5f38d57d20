"""Flash kernels in half precision against SDPA, on the same tokens and caches."""

from __future__ import annotations

import pytest
import torch

from dlm.models.attention import (
    PackedAttention,
    SdpaAttention,
    Segment,
    VarlenAttention,
    choose_backend,
    kernels,
)
from dlm.models.attention.segments import Retain
from dlm.models.backbone import Backbone
from tests.gpu import CUDA, ON_CUDA
from tests.gpu.asking import model_on_cuda

pytestmark = ON_CUDA

SEGMENTS = [
    Segment(0, 40),
    Segment(40, 64, slot=0),
    Segment(104, 50, slot=80, retain=Retain(10, 20, 12, 3, True)),
    Segment(154, 8, slot=420, key_start=400, num_keys=60),
    Segment(162, 32, slot=232, key_start=200, num_keys=150),
    Segment(194, 1, slot=140, key_start=130, num_keys=11),
    Segment(195, 16, slot=516, key_start=500, num_keys=32, causal=True),
]
ROWS = 211


def test_the_backend_is_the_flash_kernel() -> None:
    kernel = kernels.varlen_kernel()
    assert kernel is not None
    assert choose_backend(CUDA, torch.bfloat16) is VarlenAttention
    for dtype in (torch.bfloat16, torch.float16):
        verdict = kernels.reads_in_place(kernel, CUDA, dtype)
        print(f"torch {torch.__version__}, {dtype}: takes used lengths {kernel.takes_used}, in place {verdict}")
        assert verdict == kernel.takes_used  # else the kernel does not do what its arguments say


def widened(backbone: Backbone) -> Backbone:
    """The same weights in float32."""
    made = Backbone(backbone.config).to(CUDA)
    made.load_state_dict({name: weight.float() for name, weight in backbone.state_dict().items()})
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("size", ["tiny", "tiny_dream", "small", "57m"])
def test_flash_agrees_with_sdpa(size: str, dtype: str) -> None:
    """Forced tokens through the model: hidden states and what is left in the arena are as near to those of a float32
    copy as SDPA's are."""
    model = model_on_cuda(size, dtype).backbone
    torch.manual_seed(1)
    config = model.config
    shape = (config.num_layers, 600, config.num_kv_heads, config.head_dim)
    arenas = [torch.randn(shape, device=CUDA).to(model.dtype) for _ in range(2)]
    tokens, positions = torch.randint(500, (ROWS,), device=CUDA), torch.randint(200, (ROWS,), device=CUDA)
    results = []
    runs: list[tuple[Backbone, type[PackedAttention]]] = [(model, VarlenAttention), (model, SdpaAttention)]
    for backbone, backend in [*runs, (widened(model), SdpaAttention)]:
        keys, values = (arena.to(backbone.dtype, copy=True) for arena in arenas)
        with torch.inference_mode():
            hidden = backbone(tokens, positions, backend(SEGMENTS, keys, values))
        results.append([part.float() for part in (hidden, keys, values)])
    for flash, sdpa, exact in zip(*results, strict=True):
        errors = [float((one - exact).norm() / exact.norm()) for one in (flash, sdpa)]
        print(f"{size} {dtype}: relative error {errors[0]:.2e}, of SDPA {errors[1]:.2e}")
        assert errors[0] < 1.5 * errors[1] + 1e-3
