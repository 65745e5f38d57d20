"""The checks: bits of a row, a window, a score or an answer computed alone, against those computed in a batch.

Each check does a minimum of work, then continues until its time is up; its coverage is part of its result.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from dlm.decoding import noise
from dlm.decoding.algorithms import compose
from dlm.decoding.decoder import Decoder
from dlm.decoding.options import DecoderOptions
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Completion, Request
from dlm.decoding.scoring.proposals import ScoreSpec, score
from dlm.decoding.scoring.rows import Rows
from dlm.errors import RequestError
from dlm.models.arithmetic import Product
from dlm.models.arithmetic.probe import operands
from dlm.models.arrangement import Arrangement
from dlm.models.attention import Segment
from dlm.models.io.loading import Checkpoint

ROWS = 96
"""Rows of the largest batch of products and scores."""
MOST = 24
"""At most this many requests to the decoder."""
LARGE = 40e6
"""From this many parameters, requests are shorter and fewer."""


@dataclass(frozen=True)
class Lengths:
    """Sizes of the requests to the decoder.

    Attributes:
        prompt: maximum tokens.
        answers: answer lengths in tokens to choose from.
        forwards: maximum per block.
        canvases: decoded at once when the cost is measured.
        fewest: minimum number of requests, however little time there is.
    """

    prompt: int
    answers: tuple[int, ...]
    forwards: int
    canvases: int
    fewest: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Lengths:
        """Sizes for a model, such that a check takes seconds."""
        parameters = sum(parameter.numel() for parameter in checkpoint.backbone.parameters())
        return cls(48, (5, 12, 24), 3, 16, 8) if parameters < LARGE else cls(16, (2, 5, 7), 2, 6, 4)


SPECS = {
    "greedy": ScoreSpec("low_confidence", record=True),
    "sampled": ScoreSpec("low_confidence", temperature=0.8, top_k=50, record=True, token_stats=True),
    "entropy": ScoreSpec("entropy"),
}


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    Attributes:
        name: of the check.
        covered: what was compared, in words.
        compared, different: number of comparisons, and of those whose bits differ.
        first: what differed first.
    """

    name: str
    covered: str
    compared: int
    different: int = 0
    first: str = ""

    @property
    def holds(self) -> bool:
        return self.compared > 0 and self.different == 0


@dataclass(frozen=True)
class Cost:
    """The cost of batch invariance.

    Attributes:
        ratios: canvases at once -> the decoder's time relative to one whose bits may depend on the batch.
    """

    ratios: dict[int, float]


def prove(checkpoint: Checkpoint, seconds: float, seed: int) -> Iterator[Arrangement | CheckResult | Cost]:
    """Yield the arrangement in force for a model, then each check's result; the checks take about `seconds`."""
    arrangement = Arrangement.of(checkpoint.backbone)
    yield arrangement
    # Each check has its own generator, so that how far one gets in its time does not affect the next.
    yield check_products(arrangement, 0.15 * seconds, random.Random(seed))
    yield check_attention(arrangement, 0.1 * seconds, random.Random(seed))
    yield check_scorer(arrangement, 0.15 * seconds, random.Random(seed))
    yield check_decoder(checkpoint, 0.4 * seconds, random.Random(seed))
    yield measure_cost(checkpoint, 0.2 * seconds, random.Random(seed))


class Tally:
    """Counts the comparisons of one check until its time is up.

    Args:
        seconds: after which no more comparisons are needed.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.compared = self.different = 0
        self.first = ""

    @property
    def time_is_left(self) -> bool:
        return time.monotonic() < self._end

    def compare(self, equal: bool, what: str) -> None:
        self.compared += 1
        if not equal:
            self.different += 1
            self.first = self.first or what

    def result(self, name: str, covered: str) -> CheckResult:
        return CheckResult(name, covered, self.compared, self.different, self.first)


@torch.inference_mode()
def check_products(arrangement: Arrangement, seconds: float, chance: random.Random) -> CheckResult:
    """Each product of the model: batches of different numbers of rows, against the same rows in the largest batch."""
    products, largest = arrangement.counts, 0
    tally = Tally(seconds)
    for number, product in enumerate(products):
        share = Tally(seconds / len(products))
        x, weight, bias = _rows(product)
        whole = arrangement.backbone.arithmetic.linear(x, weight, bias)
        for turn in count():
            if turn >= 4 and not share.time_is_left:
                break
            rows = turn + 1 if turn < 33 else chance.randint(1, ROWS)
            if turn >= 33 + ROWS:
                break
            first = chance.randint(0, ROWS - rows)
            part = slice(first, first + rows)
            got = arrangement.backbone.arithmetic.linear(x[part], weight, bias)
            tally.compare(torch.equal(got, whole[part]), f"product {number}, {product}: rows {first} to {first + rows}")
            largest = max(largest, rows)
    return tally.result("products", f"{len(products)} shapes, batches of 1 to {largest} rows against {ROWS}")


def _rows(product: Product) -> tuple[Tensor, Tensor, Tensor | None]:
    """`ROWS` rows of different magnitudes in which any change of order shows, with weight and bias."""
    row, weight, bias = operands(product)
    scales = torch.linspace(0.5, 2.0, ROWS).unsqueeze(1)
    return (row.float() * scales).to(product.dtype), weight, bias


@torch.inference_mode()
def check_attention(arrangement: Arrangement, seconds: float, chance: random.Random) -> CheckResult:
    """Windows of equal shape in one batch, against each of them alone."""
    config, backbone = arrangement.backbone.config, arrangement.backbone
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    tally, longest = Tally(seconds), 0
    shapes = [(rows, keys) for rows in range(1, 34) for keys in (rows, 40, 131)]
    chance.shuffle(shapes)
    for rows, keys in shapes:
        if tally.compared >= 20 and not tally.time_is_left:
            break
        keys = max(rows, keys)
        query = torch.randn(4 * rows, config.num_heads, config.head_dim, generator=generator).to(backbone.dtype)
        made = torch.randn(2, 4 * rows, config.num_kv_heads, config.head_dim, generator=generator).to(backbone.dtype)
        arena = torch.randn(2, 1, 4 * keys, config.num_kv_heads, config.head_dim, generator=generator)
        held = arena.to(backbone.dtype)
        windows = [Segment(i * rows, rows, None, i * keys, keys) for i in range(4)]
        together = arrangement.backend(windows, held[0], held[1])(0, query, made[0], made[1])
        for window in windows:
            mine = slice(window.row, window.row + rows)
            lone = Segment(0, rows, None, window.key_start, keys)
            alone = arrangement.backend([lone], held[0], held[1])(0, query[mine], made[0][mine], made[1][mine])
            tally.compare(torch.equal(alone, together[mine]), f"window of {rows} rows and {keys} keys")
        longest = max(longest, rows)
    return tally.result("attention", f"windows of 1 to {longest} rows, four at once")


@torch.inference_mode()
def check_scorer(arrangement: Arrangement, seconds: float, chance: random.Random) -> CheckResult:
    """Rows of the head, scored in chunks of several lengths, against all of them at once."""
    backbone, tally, most = arrangement.backbone, Tally(seconds), 0
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    hidden = torch.randn(ROWS // 2, backbone.config.hidden_size, generator=generator).to(backbone.dtype)
    keys = torch.from_numpy(noise.keys(0, 0, 1, np.arange(len(hidden))).view(np.int64))
    for name, spec in SPECS.items():
        share = Tally(seconds / len(SPECS))
        rows = Rows(hidden[:20], keys=keys[:20] if spec.temperature else None)
        whole, _ = score(backbone, rows, spec, 4096)
        for size in (1, 2, 3, 5, 8, 13):
            if size > 2 and not share.time_is_left:
                break
            first = chance.randint(0, 20 - size)
            part, _ = score(backbone, rows.slice(first, first + size), spec, 8)
            tally.compare(torch.equal(part, whole[:, first : first + size]), f"{size} rows scored, {name}")
            most = max(most, size)
    vocabulary = backbone.config.vocab_size
    return tally.result("scorer", f"{vocabulary:,} columns, {', '.join(SPECS)}; 1 to {most} rows against 20")


def draw_requests(checkpoint: Checkpoint, chance: random.Random) -> Iterator[Request]:
    """Requests for all of the family's algorithms, with mixed lengths and parameters."""
    config, family, lengths = checkpoint.backbone.config, checkpoint.family, Lengths.of(checkpoint)
    decoder = Decoder(checkpoint.backbone, checkpoint.special, DecoderOptions(max_num_seqs=1, arena_tokens=512))
    for index in count():
        name = family.algorithms[index % len(family.algorithms)]
        engine, sampler = compose(name, {}, family=family, attention=config.attention)
        prompt = tuple(chance.randrange(config.vocab_size - 8) for _ in range(chance.randint(1, lengths.prompt)))
        length, block = chance.choice(lengths.answers), config.block_length or chance.choice([3, 4, 5, 8, 16])
        params = SamplingParams(
            gen_length=length,
            steps=length,
            block_length=block,
            temperature=chance.choice([0.0, 0.7]),
            max_nfe=lengths.forwards * -(-length // min(block, length)),
            seed=index,
            ignore_eos=True,
            record=True,
        )
        request = Request(str(index), prompt, params, engine, sampler)
        try:
            decoder.check(request)
        except RequestError:  # an algorithm with its own constraints, such as one without temperature
            continue
        yield request


def bits(completion: Completion) -> tuple[object, ...]:
    """The compared parts of an answer; numbers by their bits."""
    logprobs = None if completion.logprobs is None else tuple(float(number).hex() for number in completion.logprobs)
    return completion.error, tuple(completion.canvas_ids), completion.nfe, str(completion.step_map), logprobs


def decoder_of(
    checkpoint: Checkpoint, requests: Sequence[Request], num_seqs: int, deterministic: bool | None = None
) -> Decoder:
    """A decoder that holds `num_seqs` of the requests at once."""
    longest = max(len(request.prompt_ids) + 2 * request.params.gen_length + 64 for request in requests)
    options = DecoderOptions(max_num_seqs=num_seqs, arena_tokens=num_seqs * longest, deterministic=deterministic)
    return Decoder(checkpoint.backbone, checkpoint.special, options)


def check_decoder(checkpoint: Checkpoint, seconds: float, chance: random.Random) -> CheckResult:
    """Requests decoded alone, and again in batches of several sizes and orders."""
    tally, alone, requests = Tally(seconds), {}, []
    half, fewest = Tally(seconds / 2), Lengths.of(checkpoint).fewest
    for request in draw_requests(checkpoint, chance):
        [completion] = decoder_of(checkpoint, [request], 1).run([request])
        alone[request.id] = bits(completion)
        requests.append(request)
        if len(requests) == MOST or (len(requests) >= fewest and not half.time_is_left):
            break
    sizes: list[int] = []
    for size in dict.fromkeys(min(size, len(requests)) for size in (MOST, 5, 2)):
        if sizes and not tally.time_is_left:
            break
        sizes.append(size)
        mixed = chance.sample(requests, len(requests))
        for completion in decoder_of(checkpoint, mixed, size).run(mixed):
            equal = bits(completion) == alone[completion.request_id]
            tally.compare(equal, f"request {completion.request_id} in batches of {size}")
    algorithms = len({(request.engine.name, request.sampler.name) for request in requests})
    covered = f"{len(requests)} requests, {algorithms} algorithms, alone and in batches of {', '.join(map(str, sizes))}"
    return tally.result("decoder", covered)


def measure_cost(checkpoint: Checkpoint, seconds: float, chance: random.Random) -> Cost:
    """Time with the arrangement in force relative to time without it, by canvases at once: the minimum of several
    alternating rounds."""
    canvases, tally = Lengths.of(checkpoint).canvases, Tally(seconds)
    requests = [request for request, _ in zip(draw_requests(checkpoint, chance), range(canvases), strict=False)]
    ratios: dict[int, float] = {}
    for size, asked in ((1, requests[:2]), (canvases, requests)):
        best: dict[bool | None, float] = {None: float("inf"), False: float("inf")}
        share = Tally(seconds / 2)
        for turn in count():
            if turn and not (share.time_is_left and tally.time_is_left):
                break
            for deterministic in best:
                decoder = decoder_of(checkpoint, asked, size, deterministic)
                begun = time.perf_counter()
                for _ in decoder.run(asked):
                    pass
                best[deterministic] = min(best[deterministic], time.perf_counter() - begun)
        ratios[size] = best[None] / best[False]
    return Cost(ratios)
