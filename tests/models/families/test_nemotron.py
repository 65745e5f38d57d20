"""Nemotron's rotary embedding and forward, against the formula and against the model it was made from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from dlm.models.architecture import BackboneConfig, YarnConfig
from dlm.models.families import NEMOTRON
from dlm.models.io.loading import save_checkpoint
from dlm.models.rotary import Rotary
from tests.models.attention.windows import causal, logits_of, shaken

YARN = YarnConfig(factor=16.0, original_positions=64, mscale=1.0, mscale_all_dim=0.5, query_beta=0.1)


def test_yarn_tables_are_those_of_the_formula() -> None:
    """Equations 17 to 22 of arXiv 2309.00071, dimension by dimension in Python's floats."""
    config = BackboneConfig(64, 64, 64, 1, 2, 2, 32, 1e-5, 1e4, 300, yarn=YARN)
    rotary = Rotary(config)
    low = math.floor(32 * math.log(64 / (32 * 2 * math.pi)) / (2 * math.log(1e4)))
    high = math.ceil(32 * math.log(64 / (1 * 2 * math.pi)) / (2 * math.log(1e4)))
    magnitude = (0.1 * math.log(16) + 1) / (0.05 * math.log(16) + 1)
    kept = stretched = 0
    for dim in range(16):
        frequency = 1e4 ** (-2 * dim / 32)
        ramp = min(max((dim - max(low, 0)) / (high - max(low, 0)), 0), 1)
        frequency = frequency * (1 - ramp) + frequency / 16 * ramp
        kept, stretched = kept + (ramp == 0), stretched + (ramp == 1)
        for position in (0, 1, 63, 64, 200, 299):
            angle = position * frequency
            assert float(rotary.cos[position, dim]) == pytest.approx(magnitude * math.cos(angle), abs=1e-4)
            assert float(rotary.sin[position, dim]) == pytest.approx(magnitude * math.sin(angle), abs=1e-4)
    assert kept
    assert stretched
    assert kept + stretched < 16
    positions = torch.tensor([0, 63, 64, 127, 128, 299])
    scale = rotary.gather_query_scale(positions, torch.float32)
    assert scale is not None
    expected = [1 + 0.1 * math.log(1 + position // 64) for position in positions.tolist()]
    torch.testing.assert_close(scale.flatten(), torch.tensor(expected))


def test_nemotron_is_ministral_with_another_head(tmp_path: Path) -> None:
    """Under a causal mask, beyond the original context, with the weights handed over by their published names."""
    from transformers import Ministral3Config, Ministral3ForCausalLM

    mine = shaken("tiny_nemotron")
    save_checkpoint(mine.backbone, mine.special, tmp_path, family=NEMOTRON)
    written = json.loads((tmp_path / "config.json").read_text())
    shape = {key: written[key] for key in written if key not in ("architectures", "model_type", "torch_dtype")}
    twin = Ministral3ForCausalLM(Ministral3Config(**shape, attn_implementation="eager")).eval()
    state = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        state[name.replace("encoder.", "model.").replace("diffusion_head.", "lm_head.")] = tensor
    twin.load_state_dict(state)
    token_ids = torch.randint(0, 1024, (1, 300), generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        expected = twin(token_ids).logits
    logits = logits_of(mine.backbone, token_ids, causal)
    assert F.softmax(expected, -1).amax() < 0.9999
    torch.testing.assert_close(logits, expected, atol=3e-4, rtol=1e-4)
