"""How a canvas state is fed to a model, by its kind of attention; matches the decoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from dlm.decoding.layout import IntArray
from dlm.errors import RequestError
from dlm.likelihood.windows import ScoringBatch, ScoringWindow
from dlm.models.architecture import AttentionKind, BackboneConfig

NOTHING: IntArray = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class ScoredText:
    """A text to score.

    Attributes:
        tokens: `[length]` int64, prompt and completion.
        prompt_length: start of the completion.
    """

    tokens: IntArray
    prompt_length: int

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def completion(self) -> IntArray:
        """Positions of the completion, ascending."""
        return np.arange(self.prompt_length, self.length)


@dataclass(frozen=True)
class HiddenState:
    """A state of a target's canvas, and the positions to score in it.

    Attributes:
        hidden: `[length]` bool, the masked positions.
        asked: `[m]` int64, positions to score, ascending.
    """

    hidden: npt.NDArray[np.bool_]
    asked: IntArray


@dataclass(frozen=True)
class AttentionLayout(ABC):
    """Base of the layouts.

    Attributes:
        mask_id: fed at hidden positions.
        max_positions: the model's maximum.
        block_length: positions per block; None: the whole completion is one block.
        shifted: row i predicts position i + 1.
        commits: the first position of a block is predicted by the causal pass over its context, as in the decoder
            (`causal_context` models only).
        aligned: blocks start at multiples of their length instead of at the end of the prompt.
    """

    mask_id: int
    max_positions: int
    block_length: int | None
    shifted: bool = False
    commits: bool = False
    aligned: bool = False

    @abstractmethod
    def first_block(self, target: ScoredText) -> int:
        """Start of the block that holds the first token of the completion."""

    @abstractmethod
    def sheet(self, target: ScoredText, questions: Sequence[HiddenState]) -> ScoringBatch:
        """The states as windows; results are ordered by state, then by position."""

    def chain(self, target: ScoredText, asked: IntArray) -> ScoringBatch:
        """Scores each position of `asked [m]` with everything from there on hidden."""
        place = np.arange(target.length)
        return self.sheet(
            target, [HiddenState(place >= position, asked[i : i + 1]) for i, position in enumerate(asked)]
        )

    def units(self, target: ScoredText) -> list[tuple[int, int]]:
        """The blocks `[start, stop)` of the completion, which are predicted in order."""
        if self.block_length is None:
            return [(target.prompt_length, target.length)]
        starts = range(self.first_block(target), target.length, self.block_length)
        return [(max(at, target.prompt_length), min(at + self.block_length, target.length)) for at in starts]


@dataclass(frozen=True)
class Whole(AttentionLayout):
    """Every position sees every other."""

    def first_block(self, target: ScoredText) -> int:
        return target.prompt_length

    def sheet(self, target: ScoredText, questions: Sequence[HiddenState]) -> ScoringBatch:
        views = []
        for question in questions:
            inputs = np.where(question.hidden, self.mask_id, target.tokens)
            reads = np.maximum(question.asked - 1, 0) if self.shifted else question.asked
            views.append(ScoringWindow(inputs, 0, reads, target.tokens[question.asked]))
        return ScoringBatch(NOTHING, (0,), False, tuple(views))


@dataclass(frozen=True)
class Blocks(AttentionLayout):
    """A block sees itself and the clean blocks before it; blocks start at multiples of their length from position 0,
    and the last one is padded with masks, up to the model's maximum length."""

    causal: ClassVar[bool] = False

    def first_block(self, target: ScoredText) -> int:
        return target.prompt_length // self.size * self.size

    @property
    def size(self) -> int:
        if self.block_length is None:
            raise RequestError("the model attends in blocks, but its config has no block length")
        return self.block_length

    def padded(self, target: ScoredText) -> IntArray:
        """The canvas as the decoder would lay it out, `[at least length]`."""
        spare = min(-target.length % self.size, self.max_positions - target.length)
        return np.concatenate((target.tokens, np.full(spare, self.mask_id)))

    def sheet(self, target: ScoredText, questions: Sequence[HiddenState]) -> ScoringBatch:
        clean, first = self.padded(target), self.first_block(target)
        views = [view for question in questions for view in self._views(clean, first, question)]
        last = max(view.start for view in views)
        edges = sorted({0, *range(first % self.size, last + 1, self.size)})
        return ScoringBatch(clean[:last], tuple(edges), self.causal, tuple(views))

    def reads(self, asked: IntArray, start: int) -> IntArray:
        """Positions whose rows predict the positions `asked [m]` of the block that starts at `start`."""
        return asked

    def _views(self, clean: IntArray, first: int, question: HiddenState) -> list[ScoringWindow]:
        """One window for each block with positions to score."""
        views, blocks = [], (question.asked - first) // self.size
        for block in np.unique(blocks):
            start = first + int(block) * self.size
            asked = question.asked[blocks == block]
            inputs = clean[start : start + self.size].copy()
            inputs[np.flatnonzero(question.hidden[start : start + self.size])] = self.mask_id
            reads = self.reads(asked, start)
            own = bool((reads >= start).any())
            views.append(ScoringWindow(inputs if own else NOTHING, start, reads, clean[asked]))
        return views


@dataclass(frozen=True)
class CausalBlocks(Blocks):
    """A block sees itself and its context, which is computed causally; blocks start at the end of the prompt unless
    aligned."""

    causal: ClassVar[bool] = True

    def reads(self, asked: IntArray, start: int) -> IntArray:
        return np.where(asked == start, start - 1, asked) if self.commits else asked

    def first_block(self, target: ScoredText) -> int:
        return super().first_block(target) if self.aligned else target.prompt_length

    def padded(self, target: ScoredText) -> IntArray:
        return target.tokens

    def chain(self, target: ScoredText, asked: IntArray) -> ScoringBatch:
        """A single causal pass: one forward."""
        length = int(asked[-1])
        view = ScoringWindow(NOTHING, length, asked - 1, target.tokens[asked])
        return ScoringBatch(target.tokens[:length], (0, length), True, (view,))


PRESENTATIONS: dict[AttentionKind, type[AttentionLayout]] = {
    "bidirectional": Whole,
    "block_causal": Blocks,
    "causal_context": CausalBlocks,
}


def presentation_of(config: BackboneConfig, mask_id: int) -> AttentionLayout:
    """The layout for a model; raises `RequestError` for a shifted model that attends in blocks."""
    if config.shifted and config.attention != "bidirectional":
        raise RequestError(f"likelihoods do not support a shifted model with {config.attention} attention")
    kind = PRESENTATIONS[config.attention]
    return kind(mask_id, config.max_positions, config.block_length, config.shifted)
