"""The programs of docs/rl.md run, with the demo in the places that a reader fills."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from datasets import Dataset

from dlm import SamplingParams
from dlm.demo import CHECKPOINT
from dlm.models.io.loading import load_checkpoint
from dlm.rl import Rollouts
from dlm.text import TextCodec
from tests.rl.integrations.test_trl import KNOWN_WARNINGS

pytestmark = KNOWN_WARNINGS

PAGE = Path(__file__).parents[2] / "docs" / "rl.md"
PROMPTS = ["Split 9 eggs into 2.", "Split 17 cups into 2."]


def program(start: str) -> str:
    """The block that begins so."""
    (found,) = [block for block in re.findall(r"^```\n(.*?)^```$", PAGE.read_text(), re.M | re.S) if start in block]
    return str(found)


def test_the_loop_of_yours() -> None:
    seen: list[list[Any]] = []

    def loss_of(answers: list[Any], logprobs: list[torch.Tensor]) -> torch.Tensor:
        seen.append(answers)
        return -torch.stack([each.sum() for each in logprobs]).mean()

    class Late:
        """An optimizer of what the program has loaded by then."""

        def step(self) -> None:
            with torch.no_grad():
                for parameter in values["policy"].parameters():
                    parameter -= 1e-3 * parameter.grad

        def zero_grad(self) -> None:
            values["policy"].zero_grad()

    values: dict[str, Any] = {"folder": CHECKPOINT, "device": "cpu", "batches": [PROMPTS, PROMPTS]}
    values |= {"loss_of": loss_of, "optimizer": Late()}
    exec(program("from dlm.models.io.loading import load_checkpoint"), values)
    assert [{one.weight_version for one in answers} for answers in seen] == [{0}, {1}]
    assert [len(answers) for answers in seen] == [8, 8]
    assert values["rollouts"].weight_version == 2


def test_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.chdir(tmp_path)
    text = program("DiffusionGRPOTrainer")
    small = 'GRPOConfig(max_steps=1, bf16=False, use_cpu=True, report_to="none", disable_tqdm=True, output_dir='
    assert text.count("args=GRPOConfig(") == 1
    values: dict[str, Any] = {"folder": CHECKPOINT, "device": "cpu", "dataset": Dataset.from_dict({"prompt": PROMPTS})}
    values["reward"] = lambda completions, nfe, **columns: [float(number) for number in nfe]
    exec(text.replace("args=GRPOConfig(", f"args={small}"), values)
    assert values["trainer"].state.global_step == 1
    assert load_checkpoint(tmp_path / "outputs" / "trl" / "checkpoint-1").family.name == "llada"


def test_nemo() -> None:
    rollouts = Rollouts(load_checkpoint(CHECKPOINT), codec=TextCodec.load(CHECKPOINT))
    values: dict[str, Any] = {"rollouts": rollouts, "params": SamplingParams(gen_length=8), "pad_token_id": 1}
    values |= {"input_ids": torch.tensor([[5, 6, 7]]), "input_lengths": torch.tensor([3])}
    values["state_dict_info"] = {
        name: (list(tensor.shape), tensor.dtype) for name, tensor in rollouts.checkpoint.backbone.named_parameters()
    }
    exec(program("NemoGeneration"), values)
    named = re.findall(r"`(\w+)`", PAGE.read_text().split("## NeMo-RL")[1])
    assert set(values["batch"]) <= set(named)
