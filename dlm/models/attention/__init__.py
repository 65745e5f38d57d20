"""One packed attention call, several backends.

A `Segment` says which rows of the packed batch form one canvas's window and which keys they attend to: the window's
own keys, or a range of the arena into which the window has just been written. Nothing is padded; no row sees another
canvas.

Every backend is an `Attention` made anew for each forward from the same segments:

* `SeparateAttention`: one `scaled_dot_product_attention` per canvas. The default on a CPU.
* `SdpaAttention`: one for each run of canvases of equal shape whose key ranges are evenly spaced (views, no copy). The
  fallback on other devices.
* `VarlenAttention`: variable-length flash kernels on CUDA, for float16 and bfloat16. `frames.py` has the same over
  buffers of fixed shape, for forwards that are recorded.
* `NaiveAttention`: the definition written out, for tests.

What is named here is imported when it is first used: `segments.py` needs no torch, nor do those who use it alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlm._lazy import exports

if TYPE_CHECKING:
    from dlm.models.attention.backends import AttentionBackend, choose_backend
    from dlm.models.attention.naive import NaiveAttention
    from dlm.models.attention.packed import PackedAttention
    from dlm.models.attention.sdpa import SdpaAttention, SegmentRun, SeparateAttention, equal_runs
    from dlm.models.attention.segments import Segment
    from dlm.models.attention.varlen import VarlenAttention

__all__ = [
    "AttentionBackend",
    "NaiveAttention",
    "PackedAttention",
    "SdpaAttention",
    "Segment",
    "SegmentRun",
    "SeparateAttention",
    "VarlenAttention",
    "choose_backend",
    "equal_runs",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        "AttentionBackend": "dlm.models.attention.backends",
        "NaiveAttention": "dlm.models.attention.naive",
        "PackedAttention": "dlm.models.attention.packed",
        "SegmentRun": "dlm.models.attention.sdpa",
        "SdpaAttention": "dlm.models.attention.sdpa",
        "Segment": "dlm.models.attention.segments",
        "SeparateAttention": "dlm.models.attention.sdpa",
        "VarlenAttention": "dlm.models.attention.varlen",
        "choose_backend": "dlm.models.attention.backends",
        "equal_runs": "dlm.models.attention.sdpa",
    },
)
