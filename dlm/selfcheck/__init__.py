"""Proves on this machine that an answer does not depend on what it is batched with.

    python -m dlm.selfcheck                                  # the demo, float32 and bfloat16, the threads in use
    python -m dlm.selfcheck model=random model.size=300m threads=2 dtypes=[bfloat16]

Compares the bits of the model's own products, attention and scorer, and of real batches of the decoder. Reading order:
`config`, `checks` (what is compared), `report` (what is printed); `__main__` ties them together.
"""

__all__ = ["checks", "config", "report"]
