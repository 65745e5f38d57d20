"""Exact match on held-out demo tasks, with the real decoder: during training, and for a finished checkpoint
(`python -m dlm.bench workload=quality`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import DualCache, Engine
from dlm.decoding.options import DecoderOptions
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Request
from dlm.decoding.samplers import Sampler, Threshold
from dlm.demo.tasks import Example, check
from dlm.models.backbone import Backbone
from dlm.models.families import SpecialTokens
from dlm.text import TextCodec

GEN_LENGTH, BLOCK_LENGTH, THRESHOLD = 64, 16, 0.9


@dataclass(frozen=True)
class Accuracy:
    """Accuracy and speed on a set of examples.

    Attributes:
        families: exact match of each family, 0..1.
        overall: over all examples, 0..1.
        forwards: mean forwards per answer.
        decided_per_forward: positions decided per forward of a canvas, whatever they hold.
        tokens_per_forward: answer tokens, those before the end, per such forward.
    """

    families: dict[str, float]
    overall: float
    forwards: float
    decided_per_forward: float
    tokens_per_forward: float


def measure(
    backbone: Backbone,
    special: SpecialTokens,
    codec: TextCodec,
    examples: Sequence[Example],
    *,
    engine: Engine | None = None,
    sampler: Sampler | None = None,
    steps: int = GEN_LENGTH,
) -> Accuracy:
    """Decode `examples` greedily (default: `dual_cache` with `threshold` 0.9) and check the answers."""
    params = SamplingParams(GEN_LENGTH, steps=steps, block_length=BLOCK_LENGTH, temperature=0.0, seed=0)
    recipe = engine or DualCache(), sampler or Threshold(THRESHOLD)
    requests = [
        Request(str(index), codec.encode(example.question), params, *recipe) for index, example in enumerate(examples)
    ]
    right: dict[str, list[bool]] = {example.family: [] for example in examples}
    forwards, decided, visible = [], 0, 0
    for completion in Decoder(backbone, special, DecoderOptions(max_num_seqs=64)).run(requests):
        if completion.error is not None:
            raise RuntimeError(f"a demo prompt was refused: {completion.error}")
        example = examples[int(completion.request_id)]
        answer = codec.decode(completion.token_ids)
        right[example.family].append(check(example.family, example.question, answer))
        forwards.append(completion.nfe)
        decided += sum(token != special.mask_id for token in completion.canvas_ids)
        visible += len(completion.token_ids)
    return Accuracy(
        families={name: mean(answers) for name, answers in right.items()},
        overall=mean(one for answers in right.values() for one in answers),
        forwards=mean(forwards),
        decided_per_forward=decided / sum(forwards),
        tokens_per_forward=visible / sum(forwards),
    )
