"""The bench's reference loops are no straw men: each passes the vectors of the program it stands for."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dlm.bench.reference import BlankModel, ReferenceModel, ReferenceOutcome, dinfer, llada, sdar
from dlm.models.families import SpecialTokens
from dlm.models.io.loading import load_checkpoint

ROOT = Path(os.environ.get("DLM_GOLDENS") or Path(__file__).parents[1] / "goldens")
LLADA_FOLDERS, SDAR_FOLDERS = ("llada", "llada_eos"), ("sdar", "sdar_eos")


@cache
def lines(folder: str) -> list[dict[str, Any]]:
    text = (ROOT / folder / "decode.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@cache
def model(folder: str) -> ReferenceModel:
    return ReferenceModel(load_checkpoint(ROOT / folder, special=SpecialTokens(511, 510)).backbone)


def cases(folders: tuple[str, ...], *algorithms: str) -> list[Any]:
    """Those that the loops cover: without dInfer's other decoders, without SDAR's overwriting of decided positions."""
    return [
        pytest.param(folder, line, id=line["id"])
        for folder in folders
        for line in lines(folder)
        if line["algorithm"] in algorithms
        and line["params"].get("decoder", "threshold") == "threshold"
        and not (line["algorithm"] == "sdar_block_diffusion" and line.get("quirk"))
    ]


LLADA = cases(LLADA_FOLDERS, "llada_reference", "fastdllm")
VICINITY = cases(LLADA_FOLDERS, "dinfer_vicinity")
SDAR = cases(SDAR_FOLDERS, "sdar_block_diffusion")


def compare(outcome: ReferenceOutcome, line: dict[str, Any]) -> None:
    assert list(outcome.canvas_ids) == line["output_ids"]
    assert len(outcome.calls) == line["nfe"]
    assert [call.fed for call in outcome.calls] == line["forward_tokens"]


def llada_settings(folder: str, line: dict[str, Any]) -> llada.LLaDASettings:
    params = line["params"]
    config = json.loads((ROOT / folder / "config.json").read_text(encoding="utf-8"))
    return llada.LLaDASettings(
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


@pytest.mark.parametrize(("folder", "line"), LLADA)
def test_llada_and_fast_dllm(folder: str, line: dict[str, Any]) -> None:
    compare(llada.generate(model(folder), line["prompt_ids"], llada_settings(folder, line)), line)


@pytest.mark.parametrize(("folder", "line"), VICINITY)
def test_dinfer_vicinity(folder: str, line: dict[str, Any]) -> None:
    params = line["params"]
    config = json.loads((ROOT / folder / "config.json").read_text(encoding="utf-8"))
    names = ("gen_length", "block_length", "threshold", "prefix_look", "after_look", "warmup_steps")
    named = {name: params[name] for name in (*names, "maximum_unroll", "expected_tpf")}
    eos = params.get("eos_id", config["eos_token_id"])
    settings = dinfer.DInferSettings(params.get("mask_id", config["mask_token_id"]), **named, eos_id=eos)
    compare(dinfer.generate(model(folder), line["prompt_ids"], settings), line)


@pytest.mark.parametrize(("folder", "line"), SDAR)
def test_sdar(folder: str, line: dict[str, Any]) -> None:
    params = line["params"]
    settings = sdar.SdarSettings(
        mask_id=params["mask_id"],
        gen_length=params["gen_length"],
        block_length=params["block_length"],
        denoising_steps=params["denoising_steps"],
        strategy=params["remasking_strategy"],
        confidence_threshold=params["confidence_threshold"],
        stop_ids=tuple(params["stopping_criteria_idx"] or ()),
    )
    compare(sdar.generate(model(folder), line["prompt_ids"], settings), line)


def test_all_lines_are_there() -> None:
    assert (len(LLADA), len(VICINITY), len(SDAR)) == (61 + 14, 13 + 3, 21 + 8) or "DLM_GOLDENS" in os.environ


def test_only_the_blocks_asked_for_are_decoded() -> None:
    line = next(line for line in lines("llada") if line["params"].get("cache") == "dual")
    whole = llada_settings("llada", line)
    part = llada.LLaDASettings(**{**vars(whole), "blocks": 1})
    outcome = llada.generate(model("llada"), line["prompt_ids"], part)
    assert list(outcome.canvas_ids[: whole.block_length]) == line["output_ids"][: whole.block_length]
    assert set(outcome.canvas_ids[whole.block_length :]) == {whole.mask_id}


def test_sdar_does_not_store_the_last_block_asked_for() -> None:
    settings = sdar.SdarSettings(7, gen_length=8, block_length=4, denoising_steps=2, blocks=2)
    outcome = sdar.generate(BlankModel(), [1] * 9, settings)
    # 8 of the prompt, then a block with 3 masks (2 + 1, stored) and one with 4 (2 + 2, not stored).
    assert [call.fed for call in outcome.calls] == [8, 4, 4, 4, 4, 4]
    assert [call.keys for call in outcome.calls] == [8, 12, 12, 12, 16, 16]


def test_dinfer_by_schedule_fills_its_cache_inside_the_schedule() -> None:
    settings = dinfer.DInferSettings(7, gen_length=64, block_length=32, steps_per_block=8)
    outcome = dinfer.generate(BlankModel(), [1] * 40, settings)
    # Four warm-up calls, a refresh and its ordinary call at once, two more; then a block from a refresh.
    assert [call.fed for call in outcome.calls] == [104] * 5 + [64] * 3 + [104] + [48] * 7
    assert {call.scored for call in outcome.calls} == {32}
