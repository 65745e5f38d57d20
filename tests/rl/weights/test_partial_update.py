"""Tensors that come a few at a time: checked one by one, complete when the model is."""

from __future__ import annotations

from typing import Any

import pytest

from dlm.errors import CheckpointError
from dlm.models.io.naming import common_head
from dlm.rl import Rollouts
from dlm.rl.weights.partial_update import PartialUpdate
from tests.rl.subjects import FAMILIES, bits, equal, fresh, rollouts_of, stored
from tests.rl.weights.test_update import tied


def gathering_of(checkpoint: Any) -> PartialUpdate:
    return PartialUpdate(checkpoint.family, checkpoint.backbone.config)


@pytest.mark.parametrize("naming", ["family", "own", "wrapped", "headless"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_complete_with_its_last_tensor_and_then_written(name: str, naming: str) -> None:
    trained = fresh(name, stirred=0.3)
    given = dict(trained.backbone.named_parameters()) if naming == "own" else stored(trained)
    if naming == "own":
        given = {key: tensor for key, tensor in given.items() if ".drafter." not in key}
    if naming == "wrapped":
        given = {f"module._orig_mod.{key}": tensor for key, tensor in given.items()}
    if naming == "headless":
        given = {key.removeprefix(common_head(given)): tensor for key, tensor in given.items()}
    gathering = gathering_of(trained)
    for key, tensor in reversed(given.items()):
        assert not gathering.complete
        gathering.add(key, tensor)
    assert gathering.complete
    gathering.check_complete()
    rollouts = rollouts_of(name)
    rollouts.update_weights(gathering.tensors, version=1)
    assert equal(bits(rollouts.checkpoint.backbone), bits(trained.backbone))


def test_what_is_no_tensor_of_the_model_is_named_at_once() -> None:
    checkpoint = fresh()
    gathering, given = gathering_of(checkpoint), stored(checkpoint)
    first, second = list(given)[:2]
    gathering.add(first, given[first])
    for name, tensor, message in (
        (first, given[first], f"{first} is given twice"),
        ("model.odd", given[first], "model.odd is unknown to this model"),
        (second, given[second][:-1], f"{second} has shape .*, the model's has"),
        (second, given[second].long(), f"{second} holds torch.int64"),
    ):
        with pytest.raises(CheckpointError, match=message):
            gathering.add(name, tensor)
    assert list(gathering.tensors) == [first]
    with pytest.raises(CheckpointError, match=rf"{len(given) - 1} of {len(given)} tensors are missing .*nothing was"):
        gathering.check_complete()


def test_a_copy_of_a_tied_weight_may_come_and_need_not() -> None:
    model = tied(fresh(stirred=0.3))
    given = {name: tensor for name, tensor in model.backbone.state_dict().items() if name != "lm_head.weight"}
    for copies in ({}, {"lm_head.weight": given["embedding.weight"]}):
        gathering = gathering_of(model)
        for name, tensor in {**copies, **given}.items():
            assert not gathering.complete
            gathering.add(name, tensor)
        assert gathering.complete
        rollouts = Rollouts(tied(fresh()))
        rollouts.update_weights(gathering.tensors, version=1)
        assert equal(bits(rollouts.checkpoint.backbone), bits(model.backbone))
