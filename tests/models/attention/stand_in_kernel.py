"""A variable-length attention kernel written out in plain torch, in place of those that need a GPU."""

from __future__ import annotations

import torch
from torch import Tensor


class KernelByDefinition:
    """Each sequence alone; a causal mask ends at the lower right.

    Args:
        takes_used: as torch's kernel of version 2.13 does; without it as that of 2.11.
        in_order: reads from `used` how long a sequence is, but not out of order where it begins.
    """

    def __init__(self, *, takes_used: bool = True, in_order: bool = False) -> None:
        self.takes_used, self.in_order = takes_used, in_order
        self.calls: list[int] = []

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        queries: Tensor,
        keys: Tensor,
        longest_query: int,
        longest_keys: int,
        /,
        *,
        causal: bool,
        used: Tensor | None = None,
    ) -> Tensor:
        assert queries.dtype == keys.dtype == torch.int32
        assert len(queries) == len(keys)
        assert int(queries[-1]) == len(query)
        assert longest_query >= int(queries.diff().max())
        self.calls.append(len(queries) - 1)
        starts, lengths = keys[:-1].tolist(), keys.diff().tolist()
        if used is not None:
            assert self.takes_used
            assert used.dtype == torch.int32
            lengths = used.tolist()
            starts = sorted(starts) if self.in_order else starts
        assert longest_keys >= max(lengths)
        assert all(start >= 0 and start + length <= len(key) for start, length in zip(starts, lengths, strict=True))
        group = query.shape[1] // key.shape[1]
        output = torch.full_like(query, torch.nan)
        for index, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            window = slice(int(queries[index]), int(queries[index + 1]))
            q, span = query[window], slice(start, start + length)
            k, v = (part[span].repeat_interleave(group, dim=1) for part in (key, value))
            scores = torch.einsum("qhd,khd->hqk", q, k) / query.shape[2] ** 0.5
            if causal:
                row, column = torch.arange(len(q)).unsqueeze(1), torch.arange(len(k)).unsqueeze(0)
                scores = scores.masked_fill(column > row + len(k) - len(q), -torch.inf)
            output[window] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
        return output
