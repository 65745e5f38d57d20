"""From hidden states to proposals: the token proposed at each candidate position, and its confidence.

Only scored positions have a vocabulary-sized row, and rows are processed in chunks that fit a budget. Confidence is
computed from the odds against the proposed token, d = sum over v != x0 of exp(l_v - l_x0), c = 1 / (1 + d), without a
second vocabulary-sized tensor.

Every operation here is row-wise, and none sees a single row, which ATen would split among threads: rows are padded to a
multiple of `ROW_TILE` first. So a row's result does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dlm.decoding.cuda import fused_argmax as fused
from dlm.decoding.noise import gumbel
from dlm.decoding.scoring.rows import Rows
from dlm.decoding.scoring.token_stats import draw_sums, entropy_sums, stats_of
from dlm.models.architecture import ROW_TILE
from dlm.models.arithmetic import Arithmetic

SLICE_BYTES = 4 << 20
"""Rows are reduced in slices of about this size, so that repeated passes over a slice hit the CPU cache."""


STRETCH = 128


class Head(Protocol):
    """The part of a model that scoring needs."""

    embedding: nn.Embedding
    arithmetic: Arithmetic

    def head(self, hidden: Tensor) -> Tensor:
        """Logits `[rows, vocab]` of `hidden [rows, hidden]`."""


@dataclass(frozen=True)
class ScoreSpec:
    """How to score the rows of a canvas; rows with equal specs are scored together.

    Attributes:
        ranks_by: quantity in `priority`: `low_confidence`, `entropy`, `margin` or `random` (then the caller ranks).
        temperature, top_k, top_p: as in SamplingParams.
        cfg_scale: guidance, 0 for none.
        banned: ids whose logits are set to -inf first.
        deferred: ids whose logits are set to -inf after proposing: positions that propose them get confidence 0.
        record: also compute the log-probability of the proposal under the raw logits.
        token_stats: also compute it under the logits it was drawn from, and the entropy of the raw logits.
        boosted: a logit bias is added first; it may depend on the proposals without it.
        observe: what else to compute from the raw logits, a key of `OBSERVERS`; empty for nothing.
    """

    ranks_by: str
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_scale: float = 0.0
    banned: tuple[int, ...] = ()
    deferred: tuple[int, ...] = ()
    record: bool = False
    token_stats: bool = False
    boosted: bool = False
    observe: str = ""

    @property
    def alters_logits(self) -> bool:
        """Whether log-probabilities under the raw logits need a pass of their own."""
        return self.record and bool(self.banned or self.deferred or self.boosted)

    @property
    def unboosted(self) -> ScoreSpec:
        """Spec of the proposals that the bias depends on: the most probable tokens and their odds."""
        return ScoreSpec(self.ranks_by, banned=self.banned, deferred=self.deferred)

    @property
    def greedy_odds(self) -> bool:
        """Whether only the most probable token and the odds against it are needed, apart from at most a few banned
        ids."""
        plain = self.temperature == 0 and not (self.boosted or self.deferred or self.observe or self.alters_logits)
        plain = plain and not self.token_stats
        return plain and self.ranks_by not in STATISTICS and len(self.banned) <= fused.MAX_BANNED


@dataclass(frozen=True)
class Proposals:
    """Proposals for the rows of one canvas, on the host.

    Attributes:
        tokens: `[m]` int64, the token proposed at each candidate.
        priority: `[m]` float64, higher is more confident, by the spec's `ranks_by`.
        log_odds: `[m]` float64, log((1 - c) / c) of the proposal's probability c; nan where the logits are not finite.
        logprobs: `[m]` float64, log-probability under the raw logits; nan likewise.
        token_stats: `[2, m]` float64, log-probability under the logits it was drawn from, and entropy of the raw ones
            (`dlm.decoding.scoring.token_stats`); None unless the spec requests them.
    """

    tokens: npt.NDArray[np.int64]
    priority: npt.NDArray[np.float64]
    log_odds: npt.NDArray[np.float64]
    logprobs: npt.NDArray[np.float64]
    token_stats: npt.NDArray[np.float64] | None = None

    @classmethod
    def from_table(cls, table: npt.NDArray[np.float64], spec: ScoreSpec) -> Proposals:
        """Finish the columns `table [6 or 10, m]` computed by `score`.

        Logarithms are taken here because numpy's do not depend on an element's position in the array; torch's do.
        """
        tokens, priority, others, gap, raw_others, raw_gap, *sums = table
        with np.errstate(divide="ignore", invalid="ignore"):
            log_odds = np.where(np.isinf(gap) & ~np.isnan(others), np.inf, np.log(others) + gap)
            logprobs = -np.logaddexp(0.0, np.log(raw_others) + raw_gap if spec.alters_logits else log_odds)
        priority = priority if spec.ranks_by in STATISTICS else -log_odds
        return cls(tokens.astype(np.int64), priority, log_odds, logprobs, stats_of(*sums) if sums else None)

    @property
    def unsound(self) -> npt.NDArray[np.bool_]:
        """`[m]`, where a logit is nan or +inf, or all are -inf, so that nothing can be proposed. A logit of -inf among
        finite ones is a token that cannot be chosen."""
        return np.isnan(self.log_odds) | np.isnan(self.logprobs)


def score(model: Head, rows: Rows, spec: ScoreSpec, max_rows: int) -> tuple[Tensor, Tensor | None]:
    """Score the rows of one spec.

    Args:
        model: computes logits.
        rows: rows to score.
        spec: how to score them.
        max_rows: most rows of logits at once, a multiple of `ROW_TILE`.

    Returns:
        A pair: the table `[6, rows]` float64 for `Proposals.from_table`, and the output `[rows, ...]` of the spec's
        observer on the raw logits, or None. Table rows: proposed token; statistic of `ranks_by`, else 0; sum of
        exp(l_v - max) over v other than the proposal; max - l_proposal, inf if deferred; the same two for the raw
        logits if the spec alters them; with `token_stats`, four more of `draw_sums` and `entropy_sums`. The sum or the
        difference is nan where a logit is nan or +inf, or all are -inf.
    """
    parts, observed = [], []
    count = rows.hidden.shape[0]
    rows = rows.filled(ROW_TILE)
    for start in range(0, count, max_rows):
        chunk = rows.slice(start, start + max_rows)
        logits = _logits(model, chunk, spec)
        if spec.observe:
            observed.append(OBSERVERS[spec.observe](model, logits, chunk, spec))
        if rows.boosting is not None:
            plain = _score_chunk(logits, replace(chunk, keys=None), spec.unboosted, keep=True)
            chunk = replace(chunk, biases=rows.boosting(start, plain))
        parts.append(_score_chunk(logits, chunk, spec))
    table = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return table[:, :count], torch.cat(observed)[:count] if observed else None


def _score_chunk(logits: Tensor, rows: Rows, spec: ScoreSpec, *, keep: bool = False) -> Tensor:
    """Table of `score` for one chunk; overwrites `logits` unless `keep`."""
    step = logits.shape[0]
    if logits.device.type == "cpu":
        step = slice_rows(logits)
    parts = []
    for first in range(0, logits.shape[0], step):
        part = logits[first : first + step]
        if spec.greedy_odds and fused.fusible(part):
            parts.append(_score_fused(part, spec))
        else:
            parts.append(_score_slice(part.clone() if keep else part, rows.slice(first, first + step), spec))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def rows_within(mib: float, vocab_size: int, dtype: torch.dtype) -> int:
    """Rows of logits, in at least float32, that fit in `mib` MiB; a multiple of `ROW_TILE`, and at least that."""
    row_bytes = vocab_size * max(4, dtype.itemsize)
    return max(1, int(mib * 2**20) // row_bytes // ROW_TILE) * ROW_TILE


def slice_rows(logits: Tensor) -> int:
    """Rows of `logits [rows, vocab]` to reduce together on a CPU, a multiple of `ROW_TILE`."""
    return max(1, SLICE_BYTES // (logits.shape[1] * logits.element_size()) // ROW_TILE) * ROW_TILE


def _logits(model: Head, rows: Rows, spec: ScoreSpec) -> Tensor:
    """`[rows, vocab]`, after guidance."""
    logits = model.head(rows.hidden)
    if rows.uncond is None:
        return logits
    unconditional = model.head(rows.uncond)
    return unconditional + (spec.cfg_scale + 1.0) * (logits - unconditional)


def _score_fused(logits: Tensor, spec: ScoreSpec) -> Tensor:
    """As `_score_slice`, for specs that need only the greatest logit and the odds against it."""
    token, others = fused.argmax(logits, spec.banned)
    table = torch.zeros(6, len(token), dtype=torch.float64, device=token.device)
    table[0], table[2] = token, others
    return table


def _score_slice(logits: Tensor, rows: Rows, spec: ScoreSpec) -> Tensor:
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    raw = logits.clone() if spec.alters_logits else None
    entropy = entropy_sums(logits) if spec.token_stats else ()
    if rows.biases is not None:
        row, boosted, amounts = rows.biases
        logits.index_put_((row, boosted), amounts.to(logits.dtype), accumulate=True)
    ban(logits, spec.banned)
    token, drawn = (argmax(logits), ()) if rows.keys is None else _draw(logits, rows.keys, spec)
    at = token.unsqueeze(1)
    chosen = logits.gather(1, at)
    nothing = torch.zeros_like(token, dtype=torch.float64)
    token_stats = (*(drawn or (nothing, nothing)), *entropy) if spec.token_stats else ()
    statistic = STATISTICS[spec.ranks_by](logits) if spec.ranks_by in STATISTICS else nothing
    ban(logits, spec.deferred)
    best = logits.amax(-1, keepdim=True)
    gap = (best - chosen).squeeze(1).double()
    for late in spec.deferred:
        gap.masked_fill_(token == late, torch.inf)
    gap += (chosen - chosen).squeeze(1)  # nan if the proposal's logit is infinite
    others = logits.scatter_(1, at, -torch.inf).sub_(best).exp_().sum(-1)
    raw_others = raw_gap = nothing
    if raw is not None:
        top = raw.amax(-1, keepdim=True)
        raw_gap = (top - raw.gather(1, at)).squeeze(1)
        raw_others = raw.scatter_(1, at, -torch.inf).sub_(top).exp_().sum(-1)
    return torch.stack(
        [column.double() for column in (token, statistic, others, gap, raw_others, raw_gap, *token_stats)]
    )


def ban(logits: Tensor, tokens: tuple[int, ...]) -> None:
    """Set the columns of `tokens` to -inf; one by one, as an index list would have to be copied to the device."""
    for token in tokens:
        logits[:, token] = -torch.inf


def argmax(logits: Tensor) -> Tensor:
    """Lowest index of each row's maximum, `[rows]`.

    On a CPU `amax` runs at memory speed and `argmax` does not, so `argmax` only searches the stretch that holds the
    maximum (8 times faster on 126,464 columns).
    """
    rows, columns = logits.shape
    if logits.device.type != "cpu" or columns % STRETCH:
        return logits.argmax(-1)
    stretches = logits.view(rows, -1, STRETCH)
    stretch = stretches.amax(-1).argmax(-1)
    inside = stretches[torch.arange(rows), stretch].argmax(-1)
    return stretch * STRETCH + inside


def _draw(logits: Tensor, keys: Tensor, spec: ScoreSpec) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One draw per row from the filtered softmax(logits / temperature), by the Gumbel-max trick in float64; and with
    `token_stats`, its `draw_sums`."""
    warm = logits.double() / spec.temperature
    if spec.top_k:
        kth = warm.topk(min(spec.top_k, warm.shape[1]), dim=-1).values[:, -1:]
        warm.masked_fill_(warm < kth, -torch.inf)
    if spec.top_p < 1.0:
        ordered, index = warm.sort(dim=-1, descending=True, stable=True)
        share = ordered.softmax(-1)
        beyond = share.cumsum(-1) - share >= spec.top_p
        warm.masked_fill_(torch.zeros_like(beyond).scatter_(1, index, beyond), -torch.inf)
    token = (warm + gumbel(keys, warm.shape[1])).argmax(-1)
    return token, draw_sums(warm, token) if spec.token_stats else ()


def _negative_entropy(logits: Tensor) -> Tensor:
    """sum p log(p + 1e-10), `[rows]`."""
    probability = logits.softmax(-1)
    return (probability + 1e-10).log_().mul_(probability).sum(-1)


def _margin(logits: Tensor) -> Tensor:
    """Difference between the two highest probabilities, `[rows]`."""
    top = logits.softmax(-1).topk(2, dim=-1).values
    return top[:, 0] - top[:, 1]


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {"entropy": _negative_entropy, "margin": _margin}
"""Values of `ranks_by` that use a quantity other than the proposal's odds."""


def _divergence(model: Head, logits: Tensor, rows: Rows, spec: ScoreSpec) -> Tensor:
    """KL(p_now || p_before) in at least float32, `[rows]`."""
    if rows.before is None:
        raise RuntimeError("rows without an earlier forward have no divergence")
    now, before = (_log_softmax(each) for each in (logits, _logits(model, rows.before, spec)))
    return (now.exp() * (now - before)).sum(-1)


def _log_softmax(logits: Tensor) -> Tensor:
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def _expected_embedding(model: Head, logits: Tensor, rows: Rows, spec: ScoreSpec) -> Tensor:
    """softmax(logits) E, `[rows, hidden]`."""
    return model.arithmetic.linear(logits.softmax(-1), model.embedding.weight.t())


OBSERVERS: dict[str, Callable[[Head, Tensor, Rows, ScoreSpec], Tensor]] = {
    "divergence": _divergence,
    "expected_embedding": _expected_embedding,
}
"""What else can be computed from the raw logits (after guidance)."""
