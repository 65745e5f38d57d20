"""Training canvases from a user's file, and the endless dataset of masked batches for the Trainer.

A training file is JSON lines of `{"prompt": ..., "answer": ...}`; prompts go through the tokenizer's chat template.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from dlm.chat import ChatTemplate
from dlm.data.prompt_file import read_rows, unusable
from dlm.errors import CheckpointError, DataError
from dlm.models.families import SpecialTokens
from dlm.training.masking import MaskedBatch, Masker, TrainingCanvas


class MaskedBatches(IterableDataset[MaskedBatch]):
    """Endless masked batches; a new iterator starts over.

    Args:
        canvases: creates the endless stream of canvases.
        masker: draws the masks.
        batch_size: canvases per batch.
        seed: mask seed.
    """

    def __init__(
        self, canvases: Callable[[], Iterator[TrainingCanvas]], masker: Masker, batch_size: int, seed: int
    ) -> None:
        self.canvases = canvases
        self.masker = masker
        self.batch_size = batch_size
        self.seed = seed

    def __iter__(self) -> Iterator[MaskedBatch]:
        rng, stream = np.random.default_rng(self.seed), self.canvases()
        while True:
            yield self.masker.batch(list(islice(stream, self.batch_size)), rng)


class CanvasBuilder:
    """Turns prompts and answers into canvases: chat template, answer, end of turn, padding to the generation length.

    Raises:
        CheckpointError: the tokenizer has no chat template, or the model no token that ends an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: SpecialTokens) -> None:
        if not special.end_ids or tokenizer.chat_template is None:
            raise CheckpointError("training needs a tokenizer with a chat template and a token that ends an answer")
        self.tokenizer, self._template = tokenizer, ChatTemplate(tokenizer.get_chat_template())
        self.padding_id = special.end_ids[0]
        self.end_id = self.padding_id if special.eot_id is None else special.eot_id

    def token_ids(self, prompts: Sequence[str], answers: Sequence[str]) -> Iterator[tuple[list[int], list[int]]]:
        """Token ids of each prompt, in the chat template, and of its answer, with the end token."""
        special: dict[str, Any] = dict(self.tokenizer.special_tokens_map)
        texts = [
            self._template.render([{"role": "user", "content": prompt}], add_generation_prompt=True, **special)
            for prompt in prompts
        ]
        heads = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        tails = self.tokenizer(list(answers), add_special_tokens=False)["input_ids"]
        for head, tail in zip(heads, tails, strict=True):
            yield head, [*tail, self.end_id]

    def canvas(self, prompt_ids: Sequence[int], answer_ids: Sequence[int], gen_length: int) -> TrainingCanvas:
        """A canvas with exactly `gen_length` positions after the prompt."""
        padding = [self.padding_id] * (gen_length - len(answer_ids))
        return TrainingCanvas([*prompt_ids, *answer_ids, *padding], len(prompt_ids), len(answer_ids))


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Rows of a training file.

    Raises:
        DataError: the file is missing or empty, or a row is not an object with the texts `prompt` and `answer`.
    """
    if not path.is_file():
        raise DataError(f"training file {path} does not exist; set data.path to a file of JSON lines")
    pairs = []
    for place, row in read_rows(path):
        reason = row if isinstance(row, str) else unusable(row)
        if reason is not None or isinstance(row, str):
            raise DataError(f"{path}, {place}: {reason}")
        if not all(isinstance(row.get(key), str) for key in ("prompt", "answer")):
            raise DataError(f'{path}, {place} needs the texts "prompt" and "answer"')
        pairs.append((row["prompt"], row["answer"]))
    if not pairs:
        raise DataError(f"training file {path} holds no rows")
    return pairs


def choose_length(rng: random.Random, needed: int, gen_lengths: Sequence[int], tight_share: float) -> int:
    """One of the ascending `gen_lengths` that fits `needed`: the shortest with probability `tight_share`, else any."""
    fitting = [length for length in gen_lengths if length >= needed]
    return fitting[0] if rng.random() < tight_share else rng.choice(fitting)


def file_canvases(
    path: Path, builder: CanvasBuilder, gen_lengths: Sequence[int], tight_share: float, seed: int
) -> Iterator[TrainingCanvas]:
    """The file's rows, endlessly, reshuffled on each pass.

    Raises:
        DataError: as `read_pairs`, or an answer does not fit into the longest of `gen_lengths`.
    """
    pairs = read_pairs(path)
    encoded = list(builder.token_ids(*zip(*pairs, strict=True)))
    for number, (_, answer) in enumerate(encoded, start=1):
        if len(answer) > gen_lengths[-1]:
            raise DataError(
                f"{path}: answer {number} takes {len(answer)} tokens; raise data.gen_lengths ({gen_lengths})"
            )
    rng = random.Random(seed)
    while True:
        rng.shuffle(encoded)
        for prompt, answer in encoded:
            yield builder.canvas(prompt, answer, choose_length(rng, len(answer), gen_lengths, tight_share))
