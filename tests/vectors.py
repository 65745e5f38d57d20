"""The vector files of the reference programs: their cases as requests, and what must come out.

Reads every folder under `tests/goldens/`, or under `$DLM_GOLDENS` when that is set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dlm.decoding.engines import BlockCausal, DualCache, Engine, Full, PrefixCache, Smooth, Sparse, Vicinity
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Completion, Request
from dlm.decoding.samplers import (
    Credit,
    DInferThreshold,
    Dream,
    Factor,
    FastDLLMDream,
    Fixed,
    Hierarchy,
    LLaDA2,
    LLaDA21Edit,
    Sampler,
    Sdar,
    Threshold,
)
from dlm.decoding.types import Floats, Indices, Scores, StepContext
from dlm.errors import CheckpointError
from dlm.models.families import SpecialTokens
from dlm.models.io.loading import Checkpoint, load_checkpoint

ROOT = Path(os.environ.get("DLM_GOLDENS") or Path(__file__).parent / "goldens")
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/config.json"))
CACHES: dict[str, type[Engine]] = {"none": Full, "prefix": PrefixCache, "dual": DualCache}


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
        return load_checkpoint(ROOT / folder, dtype=dtype, special=SpecialTokens(511, 510))
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
    named = json.loads((ROOT / case.folder / "config.json").read_text(encoding="utf-8"))
    mask = params.get("mask_id", named.get("mask_token_id", 511))
    return SpecialTokens(mask, params.get("eos_id", named.get("eos_token_id")), params.get("eot_id"))


@dataclass(frozen=True)
class OriginDraws(Dream):
    """Dream's `origin` with the draws that the vector records, one for each masked position."""

    draws: tuple[tuple[float, ...], ...] = ()

    def skipped_steps(self, context: StepContext, uniform: Callable[[int], Floats]) -> int:
        return super().skipped_steps(context, lambda step: np.array(self.draws[step]))

    def select(self, scores: Scores, context: StepContext, memory: Any) -> tuple[Indices, Any]:
        drawn = np.array(self.draws[context.step], dtype=np.float64)
        return super().select(replace(scores, uniform=drawn), context, memory)


def decoder_sampler(params: dict[str, Any]) -> Sampler | Unsupported:
    """The sampler of a dInfer case."""
    match params["decoder"]:
        case "threshold":
            return DInferThreshold(params["threshold"])
        case "hierarchy":
            threshold, low_threshold = params["threshold"], params["low_threshold"]
            return Hierarchy(1.0 if threshold is None else threshold, low_threshold or 0.0)
        case "credit":
            named = {name: params[name] for name in ("credit_alpha", "boost_gamma", "decay_beta") if name in params}
            return Credit(params["threshold"], **named)
        case "fixed":
            return Fixed()
    return Unsupported(f"not supported yet: the {params['decoder']} decoder")


def dinfer_engine(algorithm: str, params: dict[str, Any]) -> Engine:
    pace = {name: params[name] for name in ("maximum_unroll", "expected_tpf")}
    base: Engine = CACHES[params.get("cache", "none")]()
    if "vicinity" in algorithm:
        base = Vicinity(params["prefix_look"], params["after_look"], params["warmup_steps"], **pace)
    if "smooth" not in algorithm:
        return base
    weights = {name: params[name] for name in ("cont_weight_init", "cont_weight_growth", "cont_weight")}
    return Smooth(base, **weights, threshold_decay=params["threshold_decay"], **pace)


def recipe(case: Case) -> tuple[Engine, Sampler] | Unsupported:
    """Engine and sampler of a case, or why it is not run."""
    algorithm, params = case.line["algorithm"], case.line["params"]
    if case.line.get("quirk") and algorithm == "sdar_block_diffusion":
        return Unsupported("refused by design: the program overwrites decided positions")
    match algorithm:
        case "llada_reference":
            if case.folder == "llada_mask":
                return Unsupported(
                    "refused by design: the program writes masks over masks and leaves them in the answer"
                )
            return Full(), Fixed(params["remasking"])
        case "fastdllm":
            engine = CACHES[params["cache"]]()
            if params["threshold"] is not None:
                return engine, Threshold(params["threshold"])
            return engine, Fixed(params["remasking"]) if params["factor"] is None else Factor(params["factor"])
        case "dinfer_blockwise" | "dinfer_vicinity" | "dinfer_iter_smooth" | "dinfer_iter_smooth_vicinity":
            sampler = decoder_sampler(params)
            if isinstance(sampler, Unsupported):
                return sampler
            return dinfer_engine(algorithm, params), sampler
        case "dinfer_block_diffusion":
            sampler = decoder_sampler(params)
            return sampler if isinstance(sampler, Unsupported) else (BlockCausal(), sampler)
        case "sparse_dllm":
            pool = params["kernel_size"] or 1
            return Sparse(params["keep_ratio"], kernel_size=pool, head_select=False), Fixed(params["remasking"])
        case "llada2_generate":
            return BlockCausal(), LLaDA2(params["threshold"], params["steps"], params["minimal_topk"])
        case "llada21_generate":
            bars = params["threshold"], params["editing_threshold"]
            return BlockCausal(), LLaDA21Edit(*bars, params["num_to_transfer"], params["max_post_steps"])
        case "sdar_block_diffusion":
            rule = params["remasking_strategy"], params["confidence_threshold"]
            return BlockCausal(), Sdar(*rule, params["denoising_steps"])
        case "dream_diffusion_generate":
            if params["alg"] == "origin":
                draws = tuple(map(tuple, params["rand_draws"]))
                return Full(), OriginDraws("origin", eps=params["eps"], draws=draws)
            return Full(), Dream(params["alg"], eps=params["eps"])
        case "fastdllm_dream":
            return Full(), FastDLLMDream(params["threshold"])
        case "fastdllm_dream_block":
            engine = CACHES[params["cache"]]()
            if params["alg"] == "confidence_threshold":
                return engine, Threshold(params["threshold"])
            return engine, Dream("entropy", eps=params["eps"])
    return Unsupported(f"not supported yet: {algorithm}")


RUN_ON = ("llada_reference", "fastdllm", "sparse_dllm", "dream_diffusion_generate", "fastdllm_dream")
"""Algorithms whose programs never stop early, whatever they produce."""


def sampling(case: Case) -> SamplingParams:
    algorithm, params = case.line["algorithm"], case.line["params"]
    steps = params.get("steps", params["gen_length"])
    if "steps_per_block" in params:
        steps = params["steps_per_block"] * -(-params["gen_length"] // params["block_length"])
    ignore = algorithm.startswith(RUN_ON)
    if algorithm == "llada21_generate":
        ignore = not params["eos_early_stop"]
    if algorithm == "sdar_block_diffusion":
        ignore = params["stopping_criteria_idx"] is None
    return SamplingParams(
        gen_length=params["gen_length"],
        steps=steps,
        block_length=params.get("block_length", params["gen_length"]),
        align_blocks=params.get("start_block_align", False),
        temperature=0.0,
        cfg_scale=params.get("cfg_scale", 0.0),
        ignore_eos=ignore,
        eos_early_stop=algorithm == "llada2_generate" and params["eos_early_stop"],
        logits_eos_inf=params.get("logits_eos_inf", False),
        confidence_eos_eot_inf=params.get("confidence_eos_eot_inf", False),
    )


def requests(case: Case) -> list[Request]:
    """The requests of a case; none where it is not run."""
    chosen = recipe(case)
    if isinstance(chosen, Unsupported):
        return []
    prompts = enumerate(case.prompts)
    return [Request(f"{case.id}#{row}", tuple(prompt), sampling(case), *chosen) for row, prompt in prompts]


def runnable(folder: str, special: SpecialTokens) -> list[Request]:
    """The requests of every case of a folder that can run beside a case with these special tokens."""
    return [request for case in cases(folder) if special_tokens(case) == special for request in requests(case)]


def as_left(case: Case, canvas: list[int]) -> list[int]:
    """A canvas of ours as the program leaves its own: dInfer fills behind the end, LLaDA2 cuts there."""
    algorithm, params, special = case.line["algorithm"], case.line["params"], special_tokens(case)
    if algorithm.startswith("dinfer") and params["early_stop"]:
        return [special.eos_id if token == special.mask_id else token for token in canvas]
    if algorithm.startswith("llada2"):
        canvas = canvas[: params["gen_length"]]
        return canvas[: canvas.index(special.eos_id) + 1] if special.eos_id in canvas else canvas
    return canvas


def compare(case: Case, completions: dict[str, Completion]) -> None:
    """Tokens are equal; nfe and positions are never above the program's, and equal where it made no idle forward."""
    line = case.line
    rows = [completions[f"{case.id}#{row}"] for row in range(len(case.prompts))]
    assert [row.error for row in rows] == [None] * len(rows)
    for row, expected in zip(rows, case.outputs, strict=True):
        assert as_left(case, list(row.canvas_ids)) == expected
        assert row.nfe <= line["nfe"]
    assert sum(row.positions for row in rows) <= sum(line["forward_tokens"])
    if line["algorithm"] == "fastdllm" and len(rows) == 1:
        assert rows[0].nfe == line["nfe"]
        assert rows[0].positions == sum(line["forward_tokens"])
