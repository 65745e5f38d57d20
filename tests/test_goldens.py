"""The vectors of the reference programs: each line alone (`solo`) and inside a random mix of others (`mixed`) in
float32, and alone in float64.

Float64 decides. Where float32 gives something else, the margin at the first step that differs is computed, and the case
passes only if rounding explains it (`tests/margins.py`); the summary names such cases with their margins. What is not
supported yet, or is refused by design, is reported as xfail with that reason, never left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dlm.decoding.decoder import Decoder
from dlm.decoding.options import DecoderOptions
from dlm.decoding.request import Completion
from dlm.models.attention import NaiveAttention, PackedAttention, SdpaAttention
from dlm.models.attention.segments import Segment
from dlm.models.backbone import Backbone
from dlm.models.io.loading import Checkpoint
from tests.decisions import decisions, first_difference
from tests.margins import judge
from tests.vectors import (
    FOLDERS,
    ROOT,
    Case,
    Unsupported,
    cases,
    checkpoint,
    compare,
    recipe,
    requests,
    runnable,
    special_tokens,
)

MIX = 6
"""How many others a case is mixed with."""


def decode_parameters() -> list[Any]:
    return [
        pytest.param(folder, index, company, id=f"{folder}|{case.line['algorithm']}|{case.id}|{company}")
        for folder in FOLDERS
        for index, case in enumerate(cases(folder))
        for company in ("solo", "mixed", "float64")
    ]


def decode_alone(case: Case, dtype: str) -> dict[str, Completion]:
    decoder = new_decoder(case, dtype, max_num_seqs=1, arena_tokens=1024)
    return {c.request_id: c for request in requests(case) for c in decoder.run([request])}


def decode_mixed(case: Case) -> dict[str, Completion]:
    chance, mine = random.Random(case.id), requests(case)
    others = [request for request in runnable(case.folder, special_tokens(case)) if request not in mine]
    mixed = mine + chance.sample(others, min(MIX, len(others)))
    chance.shuffle(mixed)
    decoder = new_decoder(case, "float32", max_num_seqs=chance.randint(2, 8), arena_tokens=2048)
    return {c.request_id: c for c in decoder.run(mixed)}


def new_decoder(case: Case, dtype: str, **options: int) -> Decoder:
    return Decoder(loaded(case, dtype), special_tokens(case), DecoderOptions(**options, poison=True))


def loaded(case: Case, dtype: str) -> Backbone:
    model = checkpoint(case.folder, dtype)
    assert not isinstance(model, Unsupported)
    return model.backbone


def margin(case: Case, completions: dict[str, Completion]) -> str:
    """The margin that excuses a float32 result that is not the vector's; AssertionError where there is none."""
    compare(case, decode_alone(case, "float64"))
    alone, texts, special = decode_alone(case, "float32"), [], special_tokens(case)
    for request in requests(case):
        assert completions[request.id].canvas_ids == alone[request.id].canvas_ids, "float32 depends on the company"
        exact, single = (decisions(loaded(case, dtype), special, request) for dtype in ("float64", "float32"))
        if first_difference(exact, single) is not None:
            verdict = judge(loaded(case, "float64"), special, exact, single)
            assert verdict.excused, f"float32 differs by more than rounding: {verdict.reason}"
            texts.append(verdict.reason)
    assert texts, "float32 decides as float64 does, and yet gives something else"
    return "; ".join(texts)


@pytest.mark.parametrize(("folder", "index", "company"), decode_parameters())
def test_decode(folder: str, index: int, company: str, record_property: Callable[[str, object], None]) -> None:
    case, model = cases(folder)[index], checkpoint(folder)
    if isinstance(model, Unsupported):
        pytest.xfail(model.reason)
    chosen = recipe(case)
    if isinstance(chosen, Unsupported):
        pytest.xfail(chosen.reason)
    if company == "float64":
        compare(case, decode_alone(case, "float64"))
        return
    completions = decode_alone(case, "float32") if company == "solo" else decode_mixed(case)
    try:
        compare(case, completions)
    except AssertionError as difference:
        try:
            record_property("margin", margin(case, completions))
        except AssertionError as reason:
            raise reason from difference


BACKENDS: list[type[PackedAttention]] = [SdpaAttention, NaiveAttention]


def packed_logits(
    model: Checkpoint, backend: type[PackedAttention], token_ids: torch.Tensor, block: int | None
) -> torch.Tensor:
    """Logits `[rows, width, vocab]` of `token_ids [rows, width]`; with `block` no row sees a later block."""
    rows, width = token_ids.shape
    config, size = model.backbone.config, block or width
    shape = (config.num_layers, rows * width, config.num_kv_heads, config.head_dim)
    keys, values = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
    segments = [
        Segment(row * width + at, size, row * width + at, row * width, at + size)
        for row in range(rows)
        for at in range(0, width, size)
    ]
    with torch.inference_mode():
        positions = torch.arange(width).repeat(rows)
        hidden = model.backbone(token_ids.flatten(), positions, backend(segments, keys, values))
        return model.backbone.head(hidden).view(rows, width, -1)


@pytest.mark.parametrize("backend", BACKENDS, ids=["sdpa", "naive"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_logits(folder: str, backend: type[PackedAttention]) -> None:
    model = checkpoint(folder)
    if isinstance(model, Unsupported):
        pytest.xfail(model.reason)
    vectors = load_file(ROOT / folder / "logits.safetensors")
    with safe_open(ROOT / folder / "logits.safetensors", "pt") as file:
        block = int((file.metadata() or {}).get("block_length", 0)) or None
    close = partial(torch.testing.assert_close, atol=3e-4, rtol=1e-4)
    close(packed_logits(model, backend, vectors["input_ids"], block), vectors["logits"])
    if "logits_full_attention" in vectors:
        close(packed_logits(model, backend, vectors["input_ids"], None), vectors["logits_full_attention"])
    for row, mask in enumerate(vectors.get("attention_mask", [])):
        kept = mask.bool()
        alone = packed_logits(model, backend, vectors["input_ids"][row][kept].unsqueeze(0), None)
        close(alone[0], vectors["logits_attention_mask"][row][kept])
