"""Answers in process: `dlm.LLM` decodes, `dlm.likelihood` scores, with the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from tqdm import tqdm

from dlm.errors import RunError
from dlm.evaluation.lm_eval.answering import Answer, AnswerJob
from dlm.evaluation.lm_eval.asking import Settings, greedy_values
from dlm.evaluation.lm_eval.texts import Pair
from dlm.likelihood import Ar, Likelihood
from dlm.llm import LLM
from dlm.sampling_params import SamplingParams
from dlm.text import TextCodec

TOGETHER = 16
"""Pairs that are scored at once: enough to fill forwards, few enough for their masks to take no memory to speak of."""


class Local:
    """Answers with a loaded model; what a request gets does not depend on what it is asked with.

    Args:
        llm: the model.
        settings: how texts are scored.
    """

    def __init__(self, llm: LLM, settings: Settings) -> None:
        self.llm, self.settings = llm, settings

    @property
    def codec(self) -> TextCodec:
        """The checkpoint's tokenizer."""
        return self.llm.codec

    @property
    def max_model_len(self) -> int:
        """Positions of prompt and answer together."""
        return self.llm.max_model_len

    @cached_property
    def likelihood(self) -> Likelihood:
        """Scores with the weights that decode. Raises `RunError` where several processes share them."""
        checkpoint, options = self.llm.checkpoint, self.llm.options
        return Likelihood(
            checkpoint.backbone,
            checkpoint.special,
            max_tokens=options.max_num_batched_tokens,
            logits_mib=options.logits_mib,
        )

    def generate(self, jobs: Sequence[AnswerJob], *, progress: bool) -> Iterator[list[str]]:
        """The texts of each job's samples. Raises `RunError` for a prompt that cannot be decoded."""
        params = [SamplingParams(**job.values) for job in jobs]
        for item in self._decoded([job.prompt for job in jobs], params, progress=progress):
            yield [sample["text"] for sample in item["outputs"]]

    def score(self, pairs: Sequence[Pair], *, progress: bool) -> Iterator[Answer]:
        """The answer to each pair."""
        chain = self.settings.scheme == Ar.name and self.settings.check_greedy
        with tqdm(total=len(pairs), disable=not progress, unit="text", dynamic_ncols=True) as bar:
            for start in range(0, len(pairs), TOGETHER):
                some = pairs[start : start + TOGETHER]
                yield from map(self._chained, some) if chain else self._estimated(some)
                bar.update(len(some))

    def _chained(self, pair: Pair) -> Answer:
        """The chain of one pair, and whether each of its tokens is the most probable one."""
        *_, found = self.likelihood.score_in_slices(*pair, Ar())
        assert found is not None  # the last of the slices is the result
        return found.mean, bool((found.per_token == found.best_logprobs).all())

    def _estimated(self, pairs: Sequence[Pair]) -> Iterator[Answer]:
        contexts, continuations = zip(*pairs, strict=True)
        scores = self.likelihood.score(contexts, continuations, self.settings.estimator(), seed=self.settings.seed)
        greedy = self._greedy(pairs) if self.settings.check_greedy else [False] * len(pairs)
        return zip(scores.mean.tolist(), greedy, strict=True)

    def _greedy(self, pairs: Sequence[Pair]) -> list[bool]:
        """Whether greedy decoding gives the continuation of each."""
        algorithms = self.llm.config.family.algorithms
        params = [SamplingParams(**greedy_values(len(continuation), algorithms)) for _, continuation in pairs]
        items = self._decoded([context for context, _ in pairs], params, progress=False)
        return [tuple(item["token_ids"]) == pair[1] for item, pair in zip(items, pairs, strict=True)]

    def _decoded(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], *, progress: bool
    ) -> list[dict[str, Any]]:
        items = self.llm.generate([list(prompt) for prompt in prompts], params, use_tqdm=progress) if prompts else []
        for item in items:
            if "error" in item:
                raise RunError(f"a prompt could not be decoded, and lm-eval knows no missing answer: {item['error']}")
        return items
