"""Requests are made when the decoder asks for them; each prompt has a seed of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule

from dlm.cli.command_line import compose_config
from dlm.data.prompts import Fault, Prompt
from dlm.decoding.engines import DualCache
from dlm.decoding.options import DecoderOptions
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Completion, Request
from dlm.decoding.samplers import Threshold
from dlm.demo import CHECKPOINT
from dlm.distributed.heartbeat import Heartbeat, StopFlag
from dlm.models.io.model_source import RandomSource
from dlm.pipeline.data import DecodeConfig, PredictBatch, PromptDataModule, seed_of
from dlm.pipeline.module import DecodingOptions, DiffusionLM
from dlm.pipeline.trainer import build_trainer, quieten
from dlm.pipeline.writer import ShardWriter
from dlm.runs.leases import LeasePlan, Leases, divide
from dlm.runs.shards import ShardFile, read_rows
from dlm.text import TextCodec

PROMPTS = [Prompt(f"p{number}", f"How many are {number}?") for number in range(9)]
PROMPTS.append(Prompt("bad", "", {"family": "x"}, Fault("DataError", "empty")))


class Scene:
    """A data module over `PROMPTS` in claims of at most three, and what it writes."""

    def __init__(self, folder: Path, world: int) -> None:
        self.folder, self.stop = folder, StopFlag()
        self.heart = Heartbeat(folder, "rank0", self.stop)
        self.shard = ShardFile(folder / "shard.jsonl")
        recipe = DecodeConfig(
            SamplingParams(gen_length=16, block_length=8, temperature=0.0, seed=5), DualCache(), Threshold()
        )
        writer = ShardWriter(self.shard, PROMPTS, (), 1, self.heart)
        self.writer = writer
        self.data = PromptDataModule(
            PROMPTS,
            lambda: TextCodec.load(CHECKPOINT, chat=False),
            recipe,
            Leases(folder, "rank0"),
            LeasePlan(divide([(prompt.size, number) for number, prompt in enumerate(PROMPTS)], world, 3), world),
            writer,
            self.stop,
            1024,
        )

    def claimed(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name.isdigit())

    def rows(self) -> list[dict[str, Any]]:
        return [row for _, row in read_rows(self.shard.path)]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path, world=2)
    yield scene
    scene.shard.close()


def test_a_claim_is_taken_when_its_first_request_is_made(scene: Scene) -> None:
    scene.data.setup("predict")
    stream = scene.data.requests()
    assert scene.claimed() == []
    first = next(stream)
    assert scene.claimed() == ["0"]
    assert (first.params.seed, first.params.n) == (seed_of(5, first.id), 1)
    rest = list(stream)
    assert sorted(request.id for request in [first, *rest]) == [prompt.id for prompt in PROMPTS[:-1]]
    assert [(row["id"], row["error"]["message"], row["row"]) for row in scene.rows()] == [
        ("bad", "empty", {"family": "x"})
    ]


def test_nothing_more_is_claimed_once_the_switch_is_thrown(scene: Scene) -> None:
    scene.data.setup("predict")
    stream = scene.data.requests()
    next(stream)
    scene.stop.throw()
    assert list(stream) == []


def test_lightning_fetching_ahead_claims_nothing(scene: Scene, tmp_path: Path) -> None:
    """The loader is read, and the batch moved, before `predict_step` has asked for a request."""
    seen: list[Any] = []

    class Watching(LightningModule):
        def predict_step(self, work: PredictBatch, batch_idx: int) -> int:
            seen.append((scene.claimed(), [request.id for request in work.requests()]))
            return 0

    quieten()
    trainer = build_trainer(compose_config("predict").trainer, [], None, tmp_path)
    trainer.predict(Watching(), datamodule=scene.data, return_predictions=False)
    assert len(seen) == 1, "one batch for each process, whatever the world"
    claimed, ids = seen[0]
    assert claimed == []
    assert sorted(ids) == [prompt.id for prompt in PROMPTS[:-1]]


def test_a_seed_comes_from_the_run_and_the_id_alone() -> None:
    seeds = {seed_of(seed, id) for seed in range(20) for id in ("a", "b", "1", "11")}
    assert len(seeds) == 80
    assert all(seed is not None and 0 <= seed < 2**63 for seed in seeds)
    assert seed_of(3, "a") == seed_of(3, "a")
    assert seed_of(None, "a") is None


def test_rows_hold_what_the_completion_does(scene: Scene) -> None:
    scene.data.setup("predict")
    done = Completion(
        "p3", 0, 7, (1,), (70, 71), (70, 71, 2), "stop", 3, 40, 0.5, (1, 1, 0), (-0.5, -0.25, float("nan"))
    )
    scene.writer.write(done)
    scene.writer.write(Completion("p4", 0, 7, (1,), error="too long"))
    first, second = scene.rows()
    assert (first["token_ids"], first["finish_reason"], first["nfe"], first["seed"]) == ([70, 71], "stop", 3, 7)
    assert (first["step_map"], first["logprobs"]) == ([1, 1, 0], [-0.5, -0.25, None])
    assert second == {
        "id": "p4",
        "prompt": PROMPTS[4].content,
        "error": {"type": "RequestError", "message": "too long"},
    }
    status = scene.heart.status
    assert (status.rows, status.errors, status.tokens, status.nfe) == (2, 1, 2, 3)


def test_weights_are_loaded_once_and_not_broadcast(scene: Scene, tmp_path: Path) -> None:
    module = DiffusionLM(DecodingOptions(RandomSource("tiny").load, DecoderOptions(max_num_seqs=2)))
    module.configure_model()
    decoder = module.decoder
    module.configure_model()
    assert module.decoder is decoder
    named = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    assert set(module._ddp_params_and_buffers_to_ignore) == named != set()
    module.on_predict_end()
    assert not list(module.parameters()), "nothing is left for Lightning to move to the host"


def test_the_decoder_stays_full_between_claims(tmp_path: Path) -> None:
    """One stream over all claims: only the last of nine prompts leaves one of two seats empty."""
    scene = Scene(tmp_path, world=2)
    stats = []

    class Remembering(DiffusionLM):
        def on_predict_end(self) -> None:
            stats.append(self.decoder.stats)
            super().on_predict_end()

    quieten()
    options = DecodingOptions(RandomSource("tiny").load, DecoderOptions(max_num_seqs=2))
    trainer = build_trainer(compose_config("predict").trainer, [scene.writer], None, tmp_path)
    trainer.predict(Remembering(options), datamodule=scene.data, return_predictions=False)
    assert len(scene.rows()) == len(PROMPTS)
    assert stats[0].mean_occupancy == pytest.approx(9 / 10)


def test_requests_are_values(scene: Scene) -> None:
    scene.data.setup("predict")
    request = next(scene.data.requests())
    assert isinstance(request, Request)
    assert request.should_stop is None
