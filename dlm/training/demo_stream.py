"""The demo's training stream: an endless, seeded supply of canvases over all task families.

Each canvas gets a generation length that holds its answer. Most answers are short, and a canvas of 64 masked positions
costs twice one of 16, so a share of the canvases takes the shortest that fits and the others any.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice

from dlm.demo.tasks import training_examples
from dlm.training.data import CanvasBuilder, choose_length
from dlm.training.masking import TrainingCanvas

CHUNK = 512


def demo_canvases(
    builder: CanvasBuilder, seed: int, gen_lengths: Sequence[int], tight_share: float
) -> Iterator[TrainingCanvas]:
    """Endless canvases.

    Args:
        builder: around the demo's tokenizer.
        seed: of the tasks and of the lengths.
        gen_lengths: generation lengths, ascending; the last holds every answer.
        tight_share: how often the shortest fitting length is taken.
    """
    rng, examples = random.Random(seed), training_examples(seed)
    while True:
        chunk = list(islice(examples, CHUNK))
        questions, answers = [example.question for example in chunk], [example.answer for example in chunk]
        for prompt, answer in builder.token_ids(questions, answers):
            yield builder.canvas(prompt, answer, choose_length(rng, len(answer), gen_lengths, tight_share))
