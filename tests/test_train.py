"""Training: masks, loss, and a smoke model whose loss falls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from dlm.cli.command_line import compose_config
from dlm.demo import CHECKPOINT
from dlm.errors import ConfigError, DataError
from dlm.models.attention import NaiveAttention, SdpaAttention
from dlm.models.backbone import Backbone, BackboneConfig
from dlm.models.families import SpecialTokens
from dlm.models.io.loading import load_checkpoint
from dlm.training.attention import FreshAttention
from dlm.training.config import register_training_schema
from dlm.training.data import CanvasBuilder, file_canvases
from dlm.training.loss import masked_diffusion_loss
from dlm.training.masking import Masker, TrainingCanvas
from dlm.training.run import train
from tests.rounding import of_a_forward

MASK = 2


def smoke(output: Path, *overrides: str) -> list[dict]:
    register_training_schema()
    config = compose_config("train", ["experiment=demo_smoke", f"output={output}", *overrides])
    train(config, "test")
    return [json.loads(line) for line in (output / "training.jsonl").read_text().splitlines()]


def canvases(count: int = 40) -> list[TrainingCanvas]:
    rng = np.random.default_rng(5)
    made = []
    for _ in range(count):
        prompt, answer, gen = int(rng.integers(3, 9)), int(rng.integers(1, 30)), int(rng.choice([32, 64]))
        made.append(TrainingCanvas([*range(10, 10 + prompt + gen)], prompt, answer))
    return made


def test_the_smoke_model_learns_and_can_be_loaded_and_trained_on(tmp_path):
    header, *rows = smoke(tmp_path / "first")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert header["seed"] == 0
    assert losses[-1] < losses[0] - 1.0
    checkpoint = load_checkpoint(tmp_path / "first")
    assert checkpoint.special.mask_id == MASK
    assert AutoTokenizer.from_pretrained(tmp_path / "first").mask_token_id == MASK
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "Say hello.", "answer": "hello"}\n{"prompt": "Say bye.", "answer": "bye"}\n')
    _, *rows = smoke(
        tmp_path / "second", f"model.path={tmp_path / 'first'}", f"data.path={pairs}", "trainer.max_steps=30"
    )
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_the_same_seed_trains_the_same_weights(tmp_path):
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    smoke(one, "trainer.max_steps=3")
    smoke(two, "trainer.max_steps=3")
    smoke(other, "trainer.max_steps=3", "seed=1")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (one, two, other)]
    assert weights[0] == weights[1] != weights[2]


def test_masks_are_states_that_a_block_decoder_sees():
    batch = Masker(MASK, [16], anywhere_share=0.0).batch(canvases(), np.random.default_rng(0))
    clean = sorted(canvases(), key=lambda canvas: len(canvas.token_ids))
    asked = torch.zeros(len(batch.token_ids), dtype=torch.bool)
    asked[batch.places] = True
    for canvas, segment in zip(clean, batch.segments, strict=True):
        rows = slice(segment.row, segment.row + segment.rows)
        hidden = (batch.token_ids[rows] == MASK).numpy()
        wanted = asked[rows].numpy()
        assert batch.positions[rows].tolist() == list(range(segment.rows))
        assert not hidden[: canvas.prompt_length].any()
        places = np.flatnonzero(wanted) - canvas.prompt_length
        block = places[0] // 16
        assert (places // 16 == block).all()
        assert 16 * block < canvas.answer_length
        assert hidden[canvas.prompt_length + 16 * (block + 1) :].all()
        assert (
            hidden[: canvas.prompt_length + 16 * (block + 1)] == wanted[: canvas.prompt_length + 16 * (block + 1)]
        ).all()


def test_masks_anywhere_are_all_asked_for():
    batch = Masker(MASK, [16], anywhere_share=1.0).batch(canvases(), np.random.default_rng(0))
    assert torch.equal(torch.nonzero(batch.token_ids == MASK).flatten(), batch.places)
    assert len(batch.mask_ratio) == len(batch.targets)
    assert (batch.mask_ratio > 0).all()


def test_fresh_attention_is_the_packed_attention_and_has_gradients():
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(200, 32, 64, 2, 4, 2, 8, 1e-5, 100.0, 128))
    backbone.initialize(0)
    batch = Masker(MASK, [16], 0.5).batch(canvases(), np.random.default_rng(1))
    fresh = backbone(batch.token_ids, batch.positions, FreshAttention(batch.segments))
    rounding = of_a_forward(backbone.config, torch.float32, len(batch.token_ids)) * float(fresh.detach().abs().max())
    for backend in (SdpaAttention, NaiveAttention):
        expected = backbone(batch.token_ids, batch.positions, backend(batch.segments))
        torch.testing.assert_close(fresh, expected, rtol=0, atol=rounding)
    fresh.square().sum().backward()
    assert all(layer.qkv.weight.grad.abs().sum() > 0 for layer in backbone.layers)


@pytest.mark.parametrize("weighting", ["uniform", "inverse"])
def test_the_loss_is_a_weighted_mean(weighting):
    logits, targets = torch.zeros(6, 10), torch.arange(6)
    loss = masked_diffusion_loss(logits, targets, torch.linspace(0.1, 1.0, 6), weighting)
    torch.testing.assert_close(loss, torch.log(torch.tensor(10.0)))


def test_inverse_weighting_favours_clean_canvases():
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
    targets, ratio = torch.tensor([1, 1]), torch.tensor([0.1, 1.0])
    assert masked_diffusion_loss(logits, targets, ratio, "inverse") > masked_diffusion_loss(logits, targets, ratio)
    with pytest.raises(ConfigError, match="choose uniform or inverse"):
        masked_diffusion_loss(logits, targets, ratio, "other")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ("not json\n", "pairs.jsonl, line-1: broken JSON"),
        ('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n', "pairs.jsonl, line-2 needs the texts"),
        ('{"prompt": "a", "answer": "%s"}\n' % ("1" * 99), "raise data.gen_lengths"),
    ],
)
def test_a_wrong_training_file_is_named(tmp_path, text, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    builder = CanvasBuilder(AutoTokenizer.from_pretrained(CHECKPOINT), SpecialTokens(MASK, 1, 5))
    with pytest.raises(DataError, match=message):
        next(file_canvases(path, builder, [16, 64], 0.0, 0))


def test_an_answer_is_taught_to_end_with_the_turn_where_the_config_names_several_ends():
    builder = CanvasBuilder(AutoTokenizer.from_pretrained(CHECKPOINT), SpecialTokens(MASK, 1, 5, (7, 8)))
    assert (builder.padding_id, builder.end_id) == (1, 5)
    builder = CanvasBuilder(AutoTokenizer.from_pretrained(CHECKPOINT), SpecialTokens(MASK, 1, None, (7, 8)))
    assert (builder.padding_id, builder.end_id) == (1, 1)


def test_the_command_line_asks_for_what_is_missing():
    run = subprocess.run([sys.executable, "-m", "dlm.train"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "output is not set" in run.stderr
    assert "trainer.max_steps is not set" in run.stderr
