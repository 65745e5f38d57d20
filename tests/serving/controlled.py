"""Servers whose weights can be changed, and weights to change them to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor

from dlm.demo import CHECKPOINT
from dlm.models.io.loading import Checkpoint, save_checkpoint
from dlm.models.io.model_source import CheckpointSource
from dlm.models.io.naming import family_places
from dlm.serving.settings import KEY_VARIABLE
from tests.serving.inside import Inside, serving_inside

KEY = "a-key"
HEADERS = {"Authorization": f"Bearer {KEY}"}
QUESTION = "Sort 9 2 55 4."
ASK = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 32, "temperature": 0.7, "seed": 3}


@contextmanager
def controlled(**settings: Any) -> Iterator[tuple[Inside, httpx.Client]]:
    """A server with `weight_control`, and a client that has its key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        with (
            serving_inside(weight_control=True, **settings) as inside,
            httpx.Client(base_url=inside.url, headers=HEADERS) as client,
        ):
            yield inside, client


def stirred(seed: int) -> Checkpoint:
    """The demo with noise on its weights."""
    model = CheckpointSource(path="demo").load(torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator) * parameter.abs().mean()
    return model


def saved(model: Checkpoint, folder: Path) -> Path:
    """A folder that can be served."""
    shutil.copytree(CHECKPOINT, folder)
    save_checkpoint(model.backbone, model.special, folder, family=model.family)
    return folder


def tensors_of(model: Checkpoint) -> dict[str, Tensor]:
    """The weights under the family's names."""
    places = family_places(model.family, model.backbone)
    return {name: place.detach().clone().contiguous() for name, place in places.items()}


def content(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def asked(client: httpx.Client, **more: Any) -> tuple[str, int]:
    """An answer, and the version of the weights that it was made with."""
    answer = client.post("/v1/chat/completions", json={**ASK, **more})
    return content(answer), answer.json()["dlm"]["weight_version"]
