"""The vectors of the reference programs: each line alone (`solo`) and inside a random mix of others (`mixed`).

Reads every folder under `tests/goldens/`, or under `$DLM_GOLDENS` when that is set. What is not supported yet, or is
refused by design, is reported as xfail with that reason, never left out.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dlm.decoding.decoder import Decoder, DecoderOptions
from dlm.decoding.engines import DualCache, Engine, Full, PrefixCache
from dlm.decoding.request import Completion, Request, SamplingParams
from dlm.decoding.samplers import DInferThreshold, Factor, Fixed, Sampler, Threshold
from dlm.errors import CheckpointError
from dlm.models.attention import NaiveAttention, PackedAttention, SdpaAttention, Segment
from dlm.models.families import SpecialTokens
from dlm.models.loading import Checkpoint, load_checkpoint, read_checkpoint_config

ROOT = Path(os.environ.get("DLM_GOLDENS") or Path(__file__).parent / "goldens")
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/config.json"))
CACHES: dict[str, type[Engine]] = {"none": Full, "prefix": PrefixCache, "dual": DualCache}
MIX = 6


@dataclass(frozen=True)
class Unsupported:
    """Why a case is not run."""

    reason: str


@dataclass(frozen=True)
class Case:
    """One line of a vector file: one prompt, or several that the program ran as one padded batch."""

    folder: str
    line: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.line["id"])

    @property
    def prompts(self) -> list[list[int]]:
        prompts = self.line["prompt_ids"]
        rows = prompts if isinstance(prompts[0], list) else [prompts]
        mask = self.line["params"].get("attention_mask")
        kept = mask if isinstance(mask, list) else [[1] * len(row) for row in rows]
        return [[t for t, keep in zip(row, bits, strict=False) if keep] for row, bits in zip(rows, kept, strict=True)]

    @property
    def outputs(self) -> list[list[int]]:
        outputs = self.line["output_ids"]
        return outputs if isinstance(outputs[0], list) else [outputs]


@cache
def cases(folder: str) -> tuple[Case, ...]:
    files = [ROOT / folder / name for name in ("decode.jsonl", "decode_batch.jsonl")]
    lines = [line for file in files if file.exists() for line in file.read_text(encoding="utf-8").splitlines()]
    return tuple(Case(folder, json.loads(line)) for line in lines)


@cache
def checkpoint(folder: str, dtype: str = "float32") -> Checkpoint | Unsupported:
    try:
        return load_checkpoint(ROOT / folder, dtype=dtype)
    except CheckpointError as error:
        return Unsupported(
            f"family not supported yet: {read_architecture(folder)}"
            if "supported families" in str(error)
            else str(error)
        )


def read_architecture(folder: str) -> str:
    return str(json.loads((ROOT / folder / "config.json").read_text(encoding="utf-8"))["architectures"][0])


def special_tokens(case: Case) -> SpecialTokens:
    params = case.line["params"]
    named = read_checkpoint_config(ROOT / case.folder).special
    return SpecialTokens(params.get("mask_id", named.mask_id), params.get("eos_id", named.eos_id), params.get("eot_id"))


def recipe(case: Case) -> tuple[Engine, Sampler] | Unsupported:
    """Engine and sampler of a case, or why it is not run."""
    algorithm, params = case.line["algorithm"], case.line["params"]
    if algorithm == "llada_reference":
        if case.folder == "llada_mask":
            return Unsupported("refused by design: the program writes masks over masks and leaves them in the answer")
        return Full(), Fixed(params["remasking"])
    if algorithm == "fastdllm":
        engine = CACHES[params["cache"]]()
        if params["threshold"] is not None:
            return engine, Threshold(params["threshold"])
        return engine, Fixed(params["remasking"]) if params["factor"] is None else Factor(params["factor"])
    if algorithm == "dinfer_blockwise":
        if params["start_block_align"]:
            return Unsupported("not supported yet: dinfer_blockwise with aligned blocks")
        if params["decoder"] != "threshold":
            return Unsupported(f"not supported yet: dinfer_blockwise with the {params['decoder']} decoder")
        return CACHES[params["cache"]](), DInferThreshold(params["threshold"])
    return Unsupported(f"not supported yet: {algorithm}")


def requests(case: Case, engine: Engine, sampler: Sampler) -> list[Request]:
    params = case.line["params"]
    values = SamplingParams(
        gen_length=params["gen_length"],
        steps=params.get("steps", 128),
        block_length=params["block_length"],
        temperature=0.0,
        cfg_scale=params.get("cfg_scale", 0.0),
        ignore_eos=case.line["algorithm"] != "dinfer_blockwise",
        logits_eos_inf=params.get("logits_eos_inf", False),
        confidence_eos_eot_inf=params.get("confidence_eos_eot_inf", False),
    )
    prompts = enumerate(case.prompts)
    return [Request(f"{case.id}#{row}", tuple(prompt), values, engine, sampler) for row, prompt in prompts]


def runnable(folder: str, special: SpecialTokens) -> list[Request]:
    """The requests of every case of a folder that can run beside a case with these special tokens."""
    found: list[Request] = []
    for case in cases(folder):
        chosen = recipe(case)
        if not isinstance(chosen, Unsupported) and special_tokens(case) == special:
            found += requests(case, *chosen)
    return found


def compare(case: Case, completions: dict[str, Completion]) -> None:
    """Tokens are equal; nfe and positions are never above the program's, and equal where it made no idle forward."""
    line = case.line
    rows = [completions[f"{case.id}#{row}"] for row in range(len(case.prompts))]
    assert [row.error for row in rows] == [None] * len(rows)
    for row, expected in zip(rows, case.outputs, strict=True):
        got = list(row.canvas_ids)
        if line["algorithm"] == "dinfer_blockwise" and line["params"]["early_stop"]:
            special = special_tokens(case)
            got = [special.eos_id if token == special.mask_id else token for token in got]
        assert got == expected
        assert row.nfe <= line["nfe"]
    assert sum(row.positions for row in rows) <= sum(line["forward_tokens"])
    if line["algorithm"] == "fastdllm" and len(rows) == 1:
        assert rows[0].nfe == line["nfe"]
        assert rows[0].positions == sum(line["forward_tokens"])


def decode_parameters() -> list[Any]:
    return [
        pytest.param(folder, index, company, id=f"{folder}|{case.line['algorithm']}|{case.id}|{company}")
        for folder in FOLDERS
        for index, case in enumerate(cases(folder))
        for company in ("solo", "mixed")
    ]


@pytest.mark.parametrize(("folder", "index", "company"), decode_parameters())
def test_decode(folder: str, index: int, company: str) -> None:
    case = cases(folder)[index]
    model = checkpoint(folder)
    if isinstance(model, Unsupported):
        pytest.xfail(model.reason)
    chosen = recipe(case)
    if isinstance(chosen, Unsupported):
        pytest.xfail(chosen.reason)
    mine = requests(case, *chosen)
    special = special_tokens(case)
    if company == "solo":
        decoder = Decoder(model.backbone, special, DecoderOptions(max_num_seqs=1, arena_tokens=1024, poison=True))
        completions = {c.request_id: c for request in mine for c in decoder.run([request])}
    else:
        chance = random.Random(case.id)
        others = [request for request in runnable(folder, special) if request not in mine]
        mixed = mine + chance.sample(others, min(MIX, len(others)))
        chance.shuffle(mixed)
        options = DecoderOptions(max_num_seqs=chance.randint(2, 8), arena_tokens=2048, poison=True)
        completions = {c.request_id: c for c in Decoder(model.backbone, special, options).run(mixed)}
    compare(case, completions)


BACKENDS: list[type[PackedAttention]] = [SdpaAttention, NaiveAttention]


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: str(backend.name))  # type: ignore[attr-defined]
@pytest.mark.parametrize("folder", FOLDERS)
def test_logits(folder: str, backend: type[Any]) -> None:
    model = checkpoint(folder)
    if isinstance(model, Unsupported):
        pytest.xfail(model.reason)
    vectors = load_file(ROOT / folder / "logits.safetensors")
    rows, width = vectors["input_ids"].shape
    with torch.inference_mode():
        segments = [Segment(row * width, width) for row in range(rows)]
        positions = torch.arange(width).repeat(rows)
        logits = model.backbone.head(model.backbone(vectors["input_ids"].flatten(), positions, backend(segments)))
        torch.testing.assert_close(logits.view(rows, width, -1), vectors["logits"], atol=3e-4, rtol=1e-4)
        if "attention_mask" not in vectors:
            return
        for row in range(rows):
            kept = vectors["attention_mask"][row].bool()
            tokens = vectors["input_ids"][row][kept]
            alone = backend([Segment(0, len(tokens))])
            logits = model.backbone.head(model.backbone(tokens, torch.arange(len(tokens)), alone))
            expected = vectors["logits_attention_mask"][row][kept]
            torch.testing.assert_close(logits, expected, atol=3e-4, rtol=1e-4)
