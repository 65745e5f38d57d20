"""Exact match on held-out demo tasks, with the real decoder: during training, and of a finished checkpoint.

    python -m dlm.demo.validation

measures the bundled checkpoint on its test set, with `threshold` and with one, two and four tokens a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean

from dlm.decoding.decoder import Decoder, DecoderOptions
from dlm.decoding.engines import DualCache
from dlm.decoding.request import Request, SamplingParams
from dlm.decoding.samplers import Fixed, Sampler, Threshold
from dlm.demo import CHECKPOINT
from dlm.demo.tasks import FAMILIES, Example, check, held_out
from dlm.models.backbone import Backbone
from dlm.models.families import SpecialTokens
from dlm.models.loading import load_checkpoint
from dlm.text import TextCodec

GEN_LENGTH, BLOCK_LENGTH, THRESHOLD = 64, 16, 0.9


@dataclass(frozen=True)
class Accuracy:
    """How a set of examples was answered.

    Attributes:
        families: exact match of each family, 0..1.
        overall: over all examples, 0..1.
        forwards: mean forwards of an answer.
    """

    families: dict[str, float]
    overall: float
    forwards: float


def measure(
    backbone: Backbone,
    special: SpecialTokens,
    codec: TextCodec,
    examples: Sequence[Example],
    *,
    sampler: Sampler | None = None,
    steps: int = GEN_LENGTH,
) -> Accuracy:
    """Decode `examples` greedily with `dual_cache` and the sampler (default `threshold` 0.9) and check the answers."""
    params = SamplingParams(GEN_LENGTH, steps=steps, block_length=BLOCK_LENGTH, temperature=0.0, seed=0)
    chosen = sampler or Threshold(THRESHOLD)
    requests = []
    for index, example in enumerate(examples):
        requests.append(Request(str(index), codec.encode(example.question), params, DualCache(), chosen))
    right: dict[str, list[bool]] = {example.family: [] for example in examples}
    forwards = []
    for completion in Decoder(backbone, special, DecoderOptions(max_num_seqs=64)).run(requests):
        example = examples[int(completion.request_id)]
        answer = codec.decode(completion.token_ids)
        right[example.family].append(check(example.family, example.question, answer))
        forwards.append(completion.nfe)
    families = {name: mean(answers) for name, answers in right.items()}
    return Accuracy(families, mean(one for answers in right.values() for one in answers), mean(forwards))


def main() -> None:
    """Print a table of the bundled checkpoint's accuracy."""
    checkpoint, codec = load_checkpoint(CHECKPOINT, dtype="float32"), TextCodec.load(CHECKPOINT)
    measure_as = partial(measure, checkpoint.backbone, checkpoint.special, codec, held_out())
    rows = {
        "threshold 0.9": measure_as(),
        "one token a step": measure_as(sampler=Fixed()),
        "two tokens a step": measure_as(sampler=Fixed(), steps=GEN_LENGTH // 2),
        "four tokens a step": measure_as(sampler=Fixed(), steps=GEN_LENGTH // 4),
    }
    print(f"{'':<18}{'forwards':>9}{'all':>7}" + "".join(f"{name:>11}" for name in FAMILIES))
    for name, row in rows.items():
        families = "".join(f"{row.families[family]:>11.2f}" for family in FAMILIES)
        print(f"{name:<18}{row.forwards:>9.1f}{row.overall:>7.3f}{families}")


if __name__ == "__main__":
    main()
