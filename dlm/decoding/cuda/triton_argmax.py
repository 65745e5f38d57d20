"""The Triton kernel behind `fused_argmax.py`; importing it needs the package `triton`.

No postponed annotations here: the compiler reads them.
"""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def triton_argmax(logits, tokens, others, columns, stride, first_banned, second_banned, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # arguments are the compiler's
    """One row per program: the lowest column with the greatest logit, and the relative weight of the other logits.

    A row is read once, in blocks. The kernel tracks the leader's column, its logit and the sum of exp(logit - leader)
    over all others; when a block's leader is greater, the old one joins the others.

    Args:
        logits: `[rows, columns]` float16, bfloat16 or float32, rows `stride` elements apart.
        tokens: `[rows]` int64, out.
        others: `[rows]` float32, out; nan if a logit is nan or the greatest is infinite.
        first_banned, second_banned: columns that count as -inf; -1 for none.
        BLOCK: columns per iteration, a power of two.
    """
    row = tl.program_id(0).to(tl.int64)
    leader = tl.full([], 0, tl.int32)
    best = tl.full([], float("-inf"), tl.float32)
    rest = tl.full([], 0.0, tl.float32)
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < columns
        value = tl.load(logits + row * stride + column, mask=inside, other=float("-inf")).to(tl.float32)
        value = tl.where((column == first_banned) | (column == second_banned), float("-inf"), value)
        top = tl.max(value, axis=0)
        place = tl.min(tl.where(value == top, column, columns), axis=0)
        weight = tl.exp(value - tl.where(top == float("-inf"), 0.0, top))
        mine = tl.sum(tl.where(column == place, 0.0, weight), axis=0)
        wins = top > best
        level = tl.maximum(best, top)
        level = tl.where(level == float("-inf"), 0.0, level)
        joined = mine + tl.exp(best - level) * (rest + 1.0)
        kept = rest + tl.exp(top - level) * (mine + 1.0)
        rest = tl.where(wins, joined, kept)
        leader = tl.where(wins, place, leader)
        best = tl.where(wins, top, best)
    tl.store(tokens + row, leader.to(tl.int64))
    tl.store(others + row, rest + (best - best))  # nan if the greatest logit is infinite
