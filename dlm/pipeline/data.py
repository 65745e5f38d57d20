"""From prompts to requests: tokenized, with a seed each, claimed when the decoder asks for the next one."""

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
    """All that one process decodes: the one batch of its loader.

    Claims are taken when `requests` is read on, not when the loader is: Lightning fetches batches ahead, and what is
    claimed early is lost to the others. One stream over all claims also keeps the decoder full from first to last.

    Args:
        requests: makes the iterator over requests.
        sink: takes each completion.
    """

    def __init__(self, requests: Callable[[], Iterator[Request]], sink: Callable[[Completion], None]) -> None:
        self.requests, self.sink = requests, sink


class PromptDataModule(LightningDataModule):
    """Requests for this process's share of the prompts.

    Args:
        prompts: all prompts of the run, in input order.
        load_codec: makes the tokenizer; called once, before any weight is read.
        recipe: how they are decoded.
        claims, plan: which of them this process takes.
        writer: takes the answers, and the reason where there is none.
        stop: once thrown, nothing more is claimed.
        positions: of the model; a prompt that cannot fit is refused before it is tokenized.
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
        """This process's requests; a prompt that cannot be one becomes a row with an error on the way."""
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
    """The prompts that this process takes, with their tokens; one that has none becomes a row with an error on the way.

    A claim is taken when its first prompt is asked for, and none once `stop` is thrown.
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
