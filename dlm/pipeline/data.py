"""Turns prompts into requests: tokenized, each with its own seed, claimed when the decoder needs the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from dlm.data.prompts import Fault, Prompt
from dlm.decoding.engines import Engine
from dlm.decoding.noise import seed_of
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Completion, Request
from dlm.decoding.samplers import Sampler
from dlm.distributed.heartbeat import StopFlag
from dlm.errors import RequestError
from dlm.pipeline.writer import ShardWriter
from dlm.runs.leases import LeasePlan, Leases
from dlm.text import TextCodec


@dataclass(frozen=True)
class DecodeConfig:
    """How every prompt of a run is decoded."""

    params: SamplingParams
    engine: Engine
    sampler: Sampler
    stop: tuple[str, ...] = ()


class PredictBatch:
    """Everything that one process decodes, as the single batch of its loader.

    Prompts are claimed as `requests` is consumed, not when the loader is read: Lightning prefetches batches, and early
    claims would keep work from the other processes. One stream over all claims also keeps the decoder full throughout.

    Args:
        requests: creates the iterator over requests.
        sink: receives each completion.
    """

    def __init__(self, requests: Callable[[], Iterator[Request]], sink: Callable[[Completion], None]) -> None:
        self.requests, self.sink = requests, sink


class PromptDataModule(LightningDataModule):
    """Requests for this process's share of the prompts.

    Args:
        prompts: all prompts of the run, in input order.
        load_codec: loads the tokenizer; called once, before any weights are read.
        recipe: how prompts are decoded.
        claims, plan: determine which prompts this process takes.
        writer: receives the answers, and the reason for each missing one.
        stop: once set, nothing more is claimed.
        positions: the model's maximum positions; a prompt that cannot fit is rejected before it is tokenized.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        load_codec: Callable[[], TextCodec],
        recipe: DecodeConfig,
        claims: Leases,
        plan: LeasePlan,
        writer: ShardWriter,
        stop: StopFlag,
        positions: int,
    ) -> None:
        super().__init__()
        self.prompts, self.recipe, self.writer, self.stop = prompts, recipe, writer, stop
        self.positions = positions
        self.claims, self.plan = claims, plan
        self._load_codec = load_codec

    def setup(self, stage: str) -> None:
        self.codec = self._load_codec()
        self.writer.codec = self.codec

    def predict_dataloader(self) -> DataLoader[PredictBatch]:
        batches = [PredictBatch(self.requests, self.writer.write)]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # any sequence serves as a Dataset

    def requests(self) -> Iterator[Request]:
        """This process's requests; an invalid prompt is written as an error row instead."""
        recipe, should_stop = self.recipe, self.codec.stop_check(self.recipe.stop)
        taken = claimed(self.prompts, self.claims, self.plan, self.codec, self.writer, self.stop, self.positions)
        for prompt, ids in taken:
            params = replace(recipe.params, seed=seed_of(recipe.params.seed, prompt.id))
            yield Request(prompt.id, ids, params, recipe.engine, recipe.sampler, should_stop)


def claimed(
    prompts: Sequence[Prompt],
    claims: Leases,
    plan: LeasePlan,
    codec: TextCodec,
    writer: ShardWriter,
    stop: StopFlag,
    positions: int,
) -> Iterator[tuple[Prompt, tuple[int, ...]]]:
    """The prompts that this process claims, with their tokens; an invalid prompt is written as an error row instead.

    A claim is taken when its first prompt is needed, and none after `stop` is set.
    """
    for number in claims.take(plan):
        if stop:
            return
        prompt = prompts[number]
        if prompt.fault is not None:
            writer.refuse(prompt.id, prompt.fault)
            continue
        try:
            codec.check_fits(prompt.content, positions)
            ids = codec.encode(prompt.content)
        except RequestError as error:
            writer.refuse(prompt.id, Fault("RequestError", str(error)))
            continue
        yield prompt, ids
