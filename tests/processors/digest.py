"""Prints a digest of products, activations and reductions, by kind, as JSON."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor
from torch.nn import functional as F

import dlm
from dlm.models.arithmetic.probe import cancelling

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def digest(*results: Tensor) -> str:
    return hashlib.blake2b(b"".join(one.double().numpy().tobytes() for one in results), digest_size=8).hexdigest()


@torch.inference_mode()
def main() -> None:
    assert dlm.__version__  # imported first, as every program of ours does: it asks for MKL's strict mode
    found, generator = {}, torch.Generator().manual_seed(0)
    row, weight = cancelling(640, 640, generator)
    values = torch.randn(3, 50_257, generator=generator)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name, dtype in DTYPES.items():
            x, w = row.expand(100, -1).contiguous().to(dtype), weight.to(dtype)
            found[f"{name} products"] = found.get(f"{name} products", "") + digest(
                *(F.linear(x[:rows], w) for rows in (1, 4, 8, 30, 32, 100))
            )
        found["reductions"] = found.get("reductions", "") + digest(
            values.sum(-1), values[:1].sum(-1), values.softmax(-1)
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
