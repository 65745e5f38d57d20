"""The parts of a run that scores given answers instead of decoding.

A question's row has the texts to score in `scored`; its output row has their `scores`, in nats, with `stderrs` and the
`lengths` of the texts in tokens.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from lightning import LightningModule
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from dlm.data.prompts import Fault, Prompt
from dlm.decoding.noise import seed_of
from dlm.distributed.heartbeat import StopFlag
from dlm.errors import NotFiniteError, RequestError
from dlm.likelihood import Likelihood, Scheme, Scored
from dlm.models.io.loading import Checkpoint
from dlm.pipeline.data import claimed
from dlm.pipeline.writer import ShardWriter
from dlm.runs.leases import LeasePlan, Leases
from dlm.text import TextCodec


@dataclass(frozen=True)
class ChoiceQuestion:
    """A prompt and the answers to score.

    Attributes:
        id: the prompt's id.
        prompt_ids: the prompt's tokens.
        answer_ids: the tokens of each answer.
    """

    id: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[tuple[int, ...], ...]


class ScoringDataModule(LightningDataModule):
    """Questions for this process's share of the prompts; the arguments are those of `PromptDataModule`."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        load_codec: Callable[[], TextCodec],
        claims: Leases,
        plan: LeasePlan,
        writer: ShardWriter,
        stop: StopFlag,
        positions: int,
    ) -> None:
        super().__init__()
        self.prompts, self.claims, self.plan, self.positions = prompts, claims, plan, positions
        self.writer, self.stop = writer, stop
        self._load_codec = load_codec

    def setup(self, stage: str) -> None:
        self.codec = self._load_codec()

    def predict_dataloader(self) -> DataLoader[ScoringDataModule]:
        return DataLoader([self], batch_size=None)  # type: ignore[arg-type]  # any sequence serves as a Dataset

    def questions(self) -> Iterator[ChoiceQuestion]:
        """This process's questions, claimed only as they are consumed, as in `PromptDataModule`."""
        taken = claimed(self.prompts, self.claims, self.plan, self.codec, self.writer, self.stop, self.positions)
        for prompt, ids in taken:
            texts = prompt.row["scored"]
            try:
                for text in texts:
                    self.codec.check_fits(text, self.positions)
            except RequestError as error:
                self.writer.refuse(prompt.id, Fault("RequestError", f"a choice: {error}"))
                continue
            answers = tuple(map(self.codec.encode_continuation, texts))
            yield ChoiceQuestion(prompt.id, ids, answers)

    def answer(self, question: ChoiceQuestion, scores: Sequence[Scored], nfe: int, seconds: float, seed: int) -> None:
        """Write the scores of a question. Raises `RunError` if the disk is full."""
        if not all(math.isfinite(each.mean) for each in scores):
            fault = Fault("RequestError", "a choice has a score that is not finite; the weights may be broken")
            self.writer.refuse(question.id, fault)
            return
        best = max(range(len(scores)), key=lambda place: scores[place].mean)
        lengths = [len(ids) for ids in question.answer_ids]
        fields = {
            "text": self.codec.decode(question.answer_ids[best]),
            "token_ids": [],
            "finish_reason": "scored",
            "nfe": nfe,
            "seed": seed,
            "seconds": round(seconds, 4),
            "scores": [each.mean for each in scores],
            "stderrs": [None if math.isnan(each.stderr) else each.stderr for each in scores],
            "lengths": lengths,
        }
        self.writer.put(question.id, fields, tokens=sum(lengths), nfe=nfe)


class ScoringLM(LightningModule):
    """A model that scores given answers.

    Args:
        load: loads the checkpoint onto a device; called in each process once its device is known.
        scheme: how answers are scored.
        seed: mask seed; each question derives its own from this and its id, shared by all its answers; None draws one
            per question.
        max_tokens: rows in one forward.
    """

    def __init__(
        self, load: Callable[[torch.device], Checkpoint], scheme: Scheme, seed: int | None, max_tokens: int
    ) -> None:
        super().__init__()
        self.load, self.scheme, self.seed, self.max_tokens = load, scheme, seed, max_tokens
        self.likelihood: Likelihood | None = None

    def configure_model(self) -> None:
        """Load the weights onto this process's device; Lightning may call it twice."""
        if self.likelihood is None:
            checkpoint = self.load(self.device)
            self.likelihood = Likelihood(checkpoint.backbone, checkpoint.special, max_tokens=self.max_tokens)

    def predict_step(self, work: ScoringDataModule, batch_idx: int) -> int:
        """Score what this process claims; `work` is its only batch."""
        total = 0
        for question in work.questions():
            begun, seed = time.monotonic(), seed_of(self.seed, question.id)
            seed = secrets.randbits(63) if seed is None else seed
            scores: list[Scored] = []
            nfe = 0
            try:
                for answer_ids in question.answer_ids:
                    for found in self._likelihood.score_in_slices(
                        question.prompt_ids, answer_ids, self.scheme, seed=seed
                    ):
                        if work.stop:
                            return total
                        if found is None:
                            nfe += 1
                        else:
                            scores.append(found)
            except (RequestError, NotFiniteError) as error:
                work.writer.refuse(question.id, Fault(type(error).__name__, str(error)))
                continue
            work.answer(question, scores, nfe, time.monotonic() - begun, seed)
            total += nfe
        return total

    @property
    def _likelihood(self) -> Likelihood:
        if self.likelihood is None:
            raise RuntimeError("ScoringLM was not configured")
        return self.likelihood

    def on_predict_end(self) -> None:
        """Release the weights: Lightning would otherwise move them to the host, on all ranks at once."""
        self.likelihood = None
