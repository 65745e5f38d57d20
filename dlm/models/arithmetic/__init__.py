"""Arithmetic in which a row's bits depend on that row alone.

Libraries choose the kernel of a matrix product by its number of rows, and with it the order in which a row is summed;
some take another kernel for the last rows of a batch, or split a sum among threads. Then what a request gets depends on
what it is batched with. This package prevents that on a CPU:

* `probe.py` finds out, for each product of a model at the thread count in use, which numbers of rows give a row the
  same bits at every place;
* `counts.py` cuts a batch into such numbers of rows;
* `activations.py` has the functions of which ATen's own depend on an element's place;
* `kinds.py` is the choice: `ProvedArithmetic` (a CPU's default), `TiledArithmetic` (`decoder.deterministic=true` on a
  GPU) or `FreeArithmetic` (`decoder.deterministic=false`).

Reductions over a row (norms, softmax, log-sum-exp) are ATen's, which splits a lone row among threads and no others:
callers pad to `ROW_TILE` rows before them and slice behind. MKL's strict mode (`dlm.models.mkl`) makes most of this
cheap.
"""

from dlm.models.arithmetic.counts import RowCounts
from dlm.models.arithmetic.kinds import (
    PROVED,
    Arithmetic,
    Computes,
    FreeArithmetic,
    Linear,
    ProvedArithmetic,
    TiledArithmetic,
    aligned,
)
from dlm.models.arithmetic.probe import Product, row_counts

__all__ = [
    "PROVED",
    "Arithmetic",
    "Computes",
    "FreeArithmetic",
    "Linear",
    "Product",
    "ProvedArithmetic",
    "RowCounts",
    "TiledArithmetic",
    "aligned",
    "row_counts",
]
