"""Computes the log-probabilities of windows' targets: packed forwards, and the LM head on the rows read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dlm.decoding.scoring.proposals import rows_within, slice_rows
from dlm.likelihood.packing import ScoringForward, pack
from dlm.likelihood.windows import ScoringBatch
from dlm.models.architecture import ROW_TILE
from dlm.models.attention import AttentionBackend, SdpaAttention, choose_backend
from dlm.models.backbone import Attention, Backbone
from dlm.models.devices import upload


class SeenAttention:
    """Attention of windows that see other rows of their batch: in each layer, the gathered keys and values of those
    rows serve as the backend's arena. Nothing is written in place, so gradients flow.

    Args:
        backend: builds the attention.
        batch: the windows and the rows they see.
        seen: `batch.seen` on the device.
    """

    def __init__(self, backend: AttentionBackend, batch: ScoringForward, seen: Tensor) -> None:
        self.backend, self.segments, self.seen = backend, batch.segments, seen

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attention = self.backend(self.segments, key[self.seen].unsqueeze(0), value[self.seen].unsqueeze(0))
        return attention(0, query, key, value)


class TokenScorer:
    """Scores given tokens with one model.

    On a CPU without gradients, a row's result has the same bits regardless of what else is scored with it, and for
    equal windows the bits that the decoder records.

    Args:
        backbone: the model.
        max_tokens: rows of one forward.
        logits_mib: memory for logits, in MiB; more rows are processed in chunks.
        backend: the attention to use; None chooses by device and dtype.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        max_tokens: int = 8192,
        logits_mib: float = 512,
        backend: AttentionBackend | None = None,
    ) -> None:
        self.backbone, self.max_tokens = backbone, max_tokens
        self.backend = backend or choose_backend(backbone.device, backbone.dtype)
        self.backend_with_gradients = backend or SdpaAttention
        self.max_rows = rows_within(logits_mib, backbone.config.vocab_size, backbone.dtype)

    def logprobs(self, sheets: Iterable[ScoringBatch], *, temperature: float = 1.0, gradients: bool = False) -> Tensor:
        """log softmax(logits / temperature) of every target, in at least float32.

        Args:
            sheets: batches to score.
            temperature: above 0.
            gradients: keep the graph. Each batch is recomputed in the backward pass, so that at most one batch's
                activations and one chunk's logits exist at a time.

        Returns:
            `[m]` float64, in the order of sheets and windows; on the host, or with gradients on the model's device.
        """
        batches = pack(sheets, self.max_tokens)
        if gradients:
            return torch.cat([_again(self._differentiable, batch, temperature) for batch in batches]).double()
        with torch.no_grad():
            return torch.from_numpy(np.concatenate([self._measured(batch, temperature)[0] for batch in batches]))

    def measure(self, sheets: Iterable[ScoringBatch]) -> Iterator[npt.NDArray[np.float64]]:
        """As `logprobs`, one packed forward at a time, with the most probable tokens.

        Yields:
            `[3, m]` float64: log-probabilities of the batch's targets, those of the most probable tokens, and their
            ids. If a target is the most probable token, the two log-probabilities have the same bits.
        """
        for batch in pack(sheets, self.max_tokens):
            with torch.no_grad():
                measured = self._measured(batch, 1.0, best=True)
            yield measured

    def _hidden(self, batch: ScoringForward) -> Tensor:
        """Hidden states `[m, hidden]` of the rows read."""
        device = self.backbone.device
        attention: Attention = self.backend(batch.segments, None, None)
        if len(batch.seen):
            # Kernels that read ranges in place have no backward pass.
            backend = self.backend_with_gradients if torch.is_grad_enabled() else self.backend
            attention = SeenAttention(backend, batch, upload(batch.seen, device))
        hidden: Tensor = self.backbone(upload(batch.token_ids, device), upload(batch.positions, device), attention)
        return hidden[upload(batch.reads, device)]

    def _measured(self, batch: ScoringForward, temperature: float, *, best: bool = False) -> npt.NDArray[np.float64]:
        """Without gradients: `[1, m]`, or with `best` the `[3, m]` of `measure`; one transfer from the device."""
        hidden, targets = self._hidden(batch), upload(batch.targets, self.backbone.device)
        count = len(targets)
        spare = -count % ROW_TILE  # never reduce a single row (see `decoding.scoring`)
        hidden, targets = F.pad(hidden, (0, 0, 0, spare)), F.pad(targets, (0, spare))
        parts = []
        for rows, wanted in zip(torch.split(hidden, self.max_rows), torch.split(targets, self.max_rows), strict=True):
            logits = _wide(self.backbone.head(rows))
            step = logits.shape[0]
            if logits.device.type == "cpu":
                step = slice_rows(logits)
            parts += [
                _odds(*each, temperature, best=best)
                for each in zip(torch.split(logits, step), torch.split(wanted, step), strict=True)
            ]
        others, gap, *ids = torch.cat(parts, dim=1)[:, :count].cpu().numpy()
        # Logarithms are taken on the host, as in `decoding.scoring.proposals.Proposals`.
        with np.errstate(divide="ignore", invalid="ignore"):
            logprobs = -np.logaddexp(0.0, np.log(others) + gap)
        return np.stack([logprobs, logprobs + gap, *ids] if best else [logprobs])

    def _differentiable(self, batch: ScoringForward, temperature: float) -> Tensor:
        """`[m]` on the device, with the graph."""
        hidden, targets = self._hidden(batch), upload(batch.targets, self.backbone.device)
        chunks = zip(torch.split(hidden, self.max_rows), torch.split(targets, self.max_rows), strict=True)
        return torch.cat([_again(self._log_softmax, *chunk, temperature) for chunk in chunks])

    def _log_softmax(self, hidden: Tensor, targets: Tensor, temperature: float) -> Tensor:
        logits = _wide(self.backbone.head(hidden))
        logits = logits if temperature == 1.0 else logits / temperature
        return logits.log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)


def _again(function: Callable[..., Tensor], *arguments: object) -> Tensor:
    """Call a function with its intermediate results recomputed in the backward pass."""
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def _odds(logits: Tensor, targets: Tensor, temperature: float, *, best: bool) -> Tensor:
    """`[2, rows]` float64: the sum of exp(l_v - max) over v other than the target, and max - l_target; with `best` a
    third row, the most probable token. Overwrites the logits. Same operations, hence bits, as `decoding.scoring`."""
    if temperature != 1.0:
        logits.div_(temperature)
    at = targets.unsqueeze(1)
    chosen, most = logits.gather(1, at), logits.amax(-1, keepdim=True)
    gap = (most - chosen).squeeze(1)
    ids = [torch.where(gap == 0, targets, logits.argmax(-1)).double()] if best else []
    others = logits.scatter_(1, at, -torch.inf).sub_(most).exp_().sum(-1)
    return torch.stack((others.double(), gap.double(), *ids))
