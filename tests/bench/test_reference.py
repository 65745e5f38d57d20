"""The bench's reference loop is no straw man: it passes the vectors of the programs it stands for."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dlm.bench.reference import ReferenceModel, Settings, generate
from dlm.models.loading import load_checkpoint

ROOT = Path(os.environ.get("DLM_GOLDENS") or Path(__file__).parents[1] / "goldens")
FOLDERS = ("llada", "llada_eos")
ALGORITHMS = ("llada_reference", "fastdllm")


@cache
def lines(folder: str) -> list[dict[str, Any]]:
    text = (ROOT / folder / "decode.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if line["algorithm"] in ALGORITHMS]


@cache
def model(folder: str) -> ReferenceModel:
    return ReferenceModel(load_checkpoint(ROOT / folder).backbone)


def settings(folder: str, line: dict[str, Any]) -> Settings:
    params = line["params"]
    config = json.loads((ROOT / folder / "config.json").read_text(encoding="utf-8"))
    return Settings(
        mask_id=params.get("mask_id", config["mask_token_id"]),
        gen_length=params["gen_length"],
        block_length=params["block_length"],
        steps=params["steps"],
        cache=params.get("cache", "none"),
        threshold=params.get("threshold"),
        factor=params.get("factor"),
        run_all_steps=line["algorithm"] == "llada_reference",
        cfg_scale=params.get("cfg_scale", 0.0),
        banned=(params["eos_id"],) if params.get("logits_eos_inf") else (),
        deferred=(params["eos_id"], params["eot_id"]) if params.get("confidence_eos_eot_inf") else (),
    )


CASES = [pytest.param(folder, line, id=line["id"]) for folder in FOLDERS for line in lines(folder)]


@pytest.mark.parametrize(("folder", "line"), CASES)
def test_golden_vectors(folder: str, line: dict[str, Any]) -> None:
    outcome = generate(model(folder), line["prompt_ids"], settings(folder, line))
    assert list(outcome.canvas_ids) == line["output_ids"]
    assert len(outcome.forward_tokens) == line["nfe"]
    assert list(outcome.forward_tokens) == line["forward_tokens"]


def test_all_lines_are_there() -> None:
    assert len(CASES) == 61 + 14 or "DLM_GOLDENS" in os.environ


def test_only_the_blocks_asked_for_are_decoded() -> None:
    line = next(line for line in lines("llada") if line["params"].get("cache") == "dual")
    whole = settings("llada", line)
    part = Settings(**{**vars(whole), "blocks": 1})
    outcome = generate(model("llada"), line["prompt_ids"], part)
    assert list(outcome.canvas_ids[: whole.block_length]) == line["output_ids"][: whole.block_length]
    assert set(outcome.canvas_ids[whole.block_length :]) == {whole.mask_id}
