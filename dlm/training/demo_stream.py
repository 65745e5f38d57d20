"""The demo's training stream: an endless, seeded supply of canvases over all task families.

Each canvas gets a generation length that fits its answer. Most answers are short, and a canvas of 64 masked positions
costs twice as much as one of 16, so some canvases take the shortest length that fits and the others any.
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
        builder: canvas builder with the demo's tokenizer.
        seed: seed of the tasks and the lengths.
        gen_lengths: generation lengths, ascending; the last fits every answer.
        tight_share: probability of taking the shortest length that fits.
    """
    rng, examples = random.Random(seed), training_examples(seed)
    while True:
        chunk = list(islice(examples, CHUNK))
        questions, answers = [example.question for example in chunk], [example.answer for example in chunk]
        for prompt, answer in builder.token_ids(questions, answers):
            yield builder.canvas(prompt, answer, choose_length(rng, len(answer), gen_lengths, tight_share))
