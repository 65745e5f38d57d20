"""The rollout function by itself, with a stand-in for the trainer."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dlm import SamplingParams
from dlm.decoding.options import DecoderOptions
from dlm.demo import CHECKPOINT
from dlm.errors import ConfigError, RequestError, RunError
from dlm.models.io.loading import load_checkpoint
from dlm.rl import Rollout, Rollouts, make_rollout_func
from dlm.rl.integrations.rollout_func import FIELDS
from dlm.text import TextCodec

PARAMS = SamplingParams(gen_length=16, block_length=16, algorithm="basic", threshold=0.9)
SPLIT, ADD = "Split 9 eggs into 2.", "Add 3 and 4 cups."
CODEC = TextCodec.load(CHECKPOINT)


def model_of(backbone: torch.nn.Module) -> torch.nn.Module:
    """A trainer's model, with the backbone somewhere inside."""
    return torch.nn.ModuleDict({"policy": backbone}).train()


def trainer_of(model: torch.nn.Module, step: int = 0, process: int = 0, **changes: Any) -> SimpleNamespace:
    values = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_completion_length": 16, "seed": 42, "min_p": None}
    values |= {"repetition_penalty": 1.0, "generation_kwargs": None, "mask_truncated_completions": False}
    return SimpleNamespace(
        model=model,
        args=SimpleNamespace(**{**values, **changes}),
        state=SimpleNamespace(global_step=step),
        accelerator=SimpleNamespace(process_index=process, unwrap_model=lambda model: model),
    )


def own_weights(**arguments: Any) -> Rollouts:
    options = DecoderOptions(arena_tokens=2000)
    return Rollouts(load_checkpoint(CHECKPOINT), **{"codec": CODEC, "options": options, **arguments})


def shared_weights() -> tuple[Rollouts, torch.nn.Module]:
    checkpoint = load_checkpoint(CHECKPOINT)
    rollouts = Rollouts(checkpoint, trainer=checkpoint.backbone, codec=CODEC, options=DecoderOptions(arena_tokens=2000))
    return rollouts, model_of(checkpoint.backbone)


def test_columns_are_those_of_the_rollouts_and_end_with_what_ended_them() -> None:
    rollouts, model = shared_weights()
    found = make_rollout_func(rollouts, PARAMS)([SPLIT] * 4 + [ADD] * 4, trainer_of(model, step=3))
    assert set(found) == {"prompt_ids", "completion_ids", "logprobs", "step_map", "rollout", *FIELDS}
    assert {len(column) for column in found.values()} == {8}
    ends = rollouts.checkpoint.special.end_ids
    for row, rollout in enumerate(found["rollout"]):
        completion = found["completion_ids"][row]
        assert tuple(found["prompt_ids"][row]) == CODEC.encode(SPLIT if row < 4 else ADD)
        assert len(completion) == len(found["logprobs"][row]) == len(found["step_map"][row])
        assert rollout.finish_reason == "stop"
        assert completion[-1] in ends
        assert tuple(completion[:-1]) == rollout.token_ids
        assert found["logprobs"][row] == list(rollout.logprobs_raw[: len(completion)])
        assert all(found[name][row] == getattr(rollout, name) for name in FIELDS)
        assert rollout.weight_version == 3
    assert all(CODEC.decode(ids).startswith("Parts") for ids in found["completion_ids"][:4])
    assert all(CODEC.decode(ids).startswith("Sum") for ids in found["completion_ids"][4:])


def test_equal_prompts_differ_calls_differ_and_a_seed_reproduces() -> None:
    rollouts, model = shared_weights()

    def answers(function: Any, trainer: Any, prompts: list[Any]) -> list[tuple[int, int]]:
        return [(one.seed, one.sample_index) for one in function(prompts, trainer)["rollout"]]

    params = replace(PARAMS, seed=5)
    once = make_rollout_func(rollouts, params)
    split = [SPLIT] * 4 + [ADD] * 2 + [SPLIT] * 2
    noises = [answers(once, trainer_of(model), split), answers(once, trainer_of(model), split)]
    noises += [answers(once, trainer_of(model, step=1), split)]
    noises += [answers(make_rollout_func(rollouts, params), trainer_of(model, process=1), split)]
    noises += [answers(once, trainer_of(model.eval(), step=1), split)]
    noises += [answers(make_rollout_func(rollouts, replace(PARAMS, seed=6)), trainer_of(model.train()), split)]
    noises += [answers(make_rollout_func(rollouts, PARAMS), trainer_of(model), split)]
    assert len({noise for call in noises for noise in call}) == sum(map(len, noises)) == 7 * 8
    assert [sample for _, sample in noises[0]] == [0, 1] * 4, "groups of what all runs of equal prompts hold"
    resumed = make_rollout_func(rollouts, params)
    assert answers(resumed, trainer_of(model, step=1), split) == noises[2]
    assert len(set(map(tuple, once([SPLIT] * 6, trainer_of(model))["completion_ids"]))) > 2


def test_messages_are_texts_in_the_chat_template() -> None:
    rollouts, model = shared_weights()
    prompts = [SPLIT, [{"role": "user", "content": SPLIT}]]
    found = make_rollout_func(rollouts, PARAMS)(prompts, trainer_of(model))
    assert found["prompt_ids"][0] == found["prompt_ids"][1]
    for wrong in ([{"role": "user", "content": [{"type": "image"}]}], ["text"], [{"role": "user"}]):
        with pytest.raises(RequestError, match=r"prompts\[1\] must be a text or messages"):
            make_rollout_func(rollouts, PARAMS)([SPLIT, wrong], trainer_of(model))


def test_an_answer_is_never_empty() -> None:
    """TRL looks at its last token: one that ended at once has its end token, or its stop string."""
    rollouts, model = shared_weights()
    with torch.no_grad():
        head = rollouts.checkpoint.backbone.lm_head.weight
        head.zero_()
        head[rollouts.checkpoint.special.end_ids[-1]] = rollouts.checkpoint.backbone.final_norm.weight
    greedy = replace(PARAMS, temperature=0.0)
    found = make_rollout_func(rollouts, greedy)([SPLIT], trainer_of(model, temperature=0.0))
    assert found["rollout"][0].token_ids == ()
    assert found["completion_ids"] == [[found["rollout"][0].replay_token_ids[0]]]
    rollouts, model = shared_weights()
    stopping = replace(greedy, stop=("Parts",))
    found = make_rollout_func(rollouts, stopping)([SPLIT], trainer_of(model, temperature=0.0))
    assert found["rollout"][0].token_ids == ()
    assert CODEC.decode(found["completion_ids"][0]).startswith("Parts")


@pytest.mark.parametrize("kept", ["shared", "copied", "own"])
def test_answers_come_from_the_weights_of_the_step(kept: str) -> None:
    policy = load_checkpoint(CHECKPOINT)
    model = model_of(policy.backbone)
    options = DecoderOptions(arena_tokens=2000)
    if kept == "shared":
        rollouts = Rollouts(policy, trainer=policy.backbone, codec=CODEC, options=options)
    else:
        rollouts = own_weights(trainer=policy.backbone if kept == "copied" else None)
    with torch.no_grad():
        rollouts.checkpoint.backbone.embedding.weight += 0.1  # not the trainer's, where there are two
    function = make_rollout_func(rollouts, replace(PARAMS, seed=1))

    def answers(step: int) -> list[Rollout]:
        found: list[Rollout] = function([SPLIT] * 4, trainer_of(model, step=step))["rollout"]
        return found

    def expected(found: list[Rollout], step: int) -> list[Rollout]:
        """What the policy's weights give by themselves."""
        alone = Rollouts(policy, codec=CODEC, weight_version=step, options=options)
        return alone.generate([SPLIT], replace(PARAMS, seed=found[0].seed), n=4)

    for step in (0, 0, 1, 3):
        found = answers(step)
        assert found == expected(found, step)
        with torch.no_grad():
            policy.backbone.layers[0].down.weight *= 1.2 if step else 1.0
    found = answers(3)
    assert (found == expected(found, 3)) == (kept == "shared"), "no optimizer's step, so nothing was copied"
    found = answers(4)
    assert found == expected(found, 4)


def test_another_trainers_module_is_refused() -> None:
    rollouts, _ = shared_weights()
    other = model_of(load_checkpoint(CHECKPOINT).backbone)
    with pytest.raises(RunError, match="another module than Rollouts"):
        make_rollout_func(rollouts, PARAMS)([SPLIT], trainer_of(other))


def test_it_sleeps_between_calls_where_told() -> None:
    policy = load_checkpoint(CHECKPOINT)
    rollouts = own_weights()
    function = make_rollout_func(rollouts, PARAMS, sleeps=True)
    for step in (0, 1):
        assert function([SPLIT], trainer_of(model_of(policy.backbone), step=step))["weight_version"] == [step]
        with pytest.raises(RunError, match="asleep"):
            rollouts.generate([SPLIT], PARAMS)


def test_the_trainers_settings_are_used_or_contradicted() -> None:
    rollouts, model = shared_weights()
    trainer = trainer_of(model, temperature=0.5, top_k=20, max_completion_length=24)
    (rollout,) = make_rollout_func(rollouts)([SPLIT], trainer)["rollout"]
    again = SamplingParams(gen_length=24, temperature=0.5, top_k=20, seed=rollout.seed)
    assert rollouts.generate([SPLIT], again) == [rollout]
    for changes, message in (
        ({"temperature": 0.5}, "temperature=1.0 in the parameters and 0.5 in GRPOConfig"),
        ({"top_k": 7}, "top_k=0 in the parameters and 7"),
        ({"top_p": 0.9}, "top_p=1.0 in the parameters and 0.9"),
        ({"max_completion_length": 256}, "answers of 16 tokens in the parameters and max_completion_length=256"),
        ({"min_p": 0.1}, "min_p=0.1 in GRPOConfig has no effect"),
        ({"repetition_penalty": 1.1}, "repetition_penalty=1.1 in GRPOConfig has no effect"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_rollout_func(rollouts, PARAMS)([SPLIT], trainer_of(model, **changes))
    stopping = make_rollout_func(rollouts, replace(PARAMS, stop=("+",)))
    with pytest.raises(ConfigError, match="mask_truncated_completions=True"):
        stopping([SPLIT], trainer_of(model, mask_truncated_completions=True))
    with pytest.raises(ConfigError, match="create them with codec="):
        make_rollout_func(own_weights(codec=None))
    with pytest.raises(ConfigError, match="num_generations=2"):
        make_rollout_func(rollouts, replace(PARAMS, n=2))
    with pytest.raises(ConfigError, match="align_blocks"):
        make_rollout_func(rollouts, replace(PARAMS, align_blocks=True))
