"""Rollouts are what the decoder gives, with what a policy gradient needs; replays recompute what it recorded."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch

from dlm import LLM, SamplingParams
from dlm.decoding.decoder import Decoder
from dlm.errors import ConfigError, RequestError, RunError
from dlm.likelihood import Coupled, Likelihood
from dlm.rl import Rollout, Rollouts
from tests.decoding.damage import damage
from tests.front import PROMPTS as TEXTS
from tests.rl.subjects import FAMILIES, OPTIONS, PROMPTS, WARM, fresh, rollouts_of, stored

CONTRACT = (
    "prompt_index", "sample_index", "seed", "prompt_ids", "token_ids", "step_map", "replay_token_ids",
    "replay_step_map", "logprobs_raw", "logprobs_processed", "entropies", "nfe", "finish_reason", "block_length",
    "mask_id", "weight_version", "contract_version",
)  # fmt: skip


FULL = replace(WARM, algorithm="basic")
"""Every forward sees the whole canvas as it is, as a replay does."""


def settings(name: str) -> list[SamplingParams]:
    """Algorithms of the family whose forwards see the full view or cache exactly, cold and warm, with filters."""
    model = fresh(name)
    bidirectional = model.backbone.config.attention == "bidirectional"
    edits = {"remask_hierarchy", "llada21", "linear_spec", "fastdllm_dream"}
    found = []
    for algorithm in model.family.algorithms:
        if algorithm in edits or (bidirectional and algorithm not in ("basic", "dream")):
            continue
        for temperature, top_k, top_p in ((0.0, 0, 1.0), (0.7, 20, 1.0), (1.3, 0, 0.9)):
            found.append(
                SamplingParams(
                    gen_length=24,
                    block_length=8 if name != "llada2" else 32,
                    steps=24,
                    algorithm=algorithm,
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    seed=len(found),
                    ignore_eos=len(found) % 2 == 0,
                )
            )
    if bidirectional and "basic" in model.family.algorithms:
        warm = {"gen_length": 20, "block_length": 10, "algorithm": "basic", "temperature": 1.0, "seed": 9}
        found += [SamplingParams(**warm, threshold=0.5), SamplingParams(**warm, factor=1.0)]
        found += [SamplingParams(**warm, steps=20, remasking=order) for order in ("random", "entropy", "margin")]
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_replay_equals_what_was_recorded(name: str) -> None:
    """Over a mix of algorithms in one batch: bit for bit where the view is the full one and the formula the same."""
    rollouts, params = rollouts_of(name), settings(name)
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(len(params))]
    batch = rollouts.generate(prompts, params, n=2)
    assert len(batch) == 2 * len(params)
    seen: Counter[str] = Counter()
    worst = 0.0
    for rollout, replayed in zip(batch, rollouts.replay(batch), strict=True):
        gap = np.abs(replayed.numpy() - np.array(rollout.logprobs_raw))
        worst = max(worst, gap.max())
        seen.update(tokens=len(gap), exact=int((gap == 0).sum()), warm=params[rollout.prompt_index].temperature > 0)
        alone = rollouts.replay_logprobs(
            rollout.prompt_ids,
            rollout.replay_token_ids,
            rollout.replay_step_map,
            block_length=rollout.block_length,
        )
        assert torch.equal(alone, replayed)
    print(f"\n{name}: {len(params)} settings, {dict(seen)}, worst {worst:.1e}")
    assert worst < 1e-4
    assert seen["warm"] > 0
    if name in ("llada", "moe", "dream", "llada2", "sdar"):
        assert seen["exact"] == seen["tokens"]


def test_the_fields_are_those_of_the_contract() -> None:
    assert tuple(field.name for field in fields(Rollout)) == CONTRACT
    (rollout,) = rollouts_of(weight_version=4).generate([PROMPTS[0]], WARM)
    with pytest.raises(FrozenInstanceError):
        rollout.nfe = 3  # type: ignore[misc]  # that is the test
    assert (rollout.contract_version, rollout.weight_version, rollout.mask_id) == (1, 4, 511)
    assert (rollout.prompt_index, rollout.sample_index, rollout.seed) == (0, 0, 3)
    assert rollout.prompt_ids == PROMPTS[0]
    assert rollout.block_length == 8
    length = len(rollout.token_ids)
    assert rollout.replay_token_ids[:length] == rollout.token_ids
    assert rollout.replay_step_map[:length] == rollout.step_map
    assert max(rollout.replay_step_map) == rollout.nfe
    for values in (rollout.logprobs_raw, rollout.logprobs_processed, rollout.entropies):
        assert len(values) == len(rollout.replay_token_ids) == 24
        revealed = np.array(rollout.replay_step_map) > 0
        assert (np.array(values)[~revealed] == 0).all()
        assert np.isfinite(values).all()
    assert all(value <= 0 for value in rollout.logprobs_processed)
    assert min(rollout.logprobs_processed) < 0 < max(rollout.entropies)


def test_the_last_block_is_whole_and_past_the_end_token() -> None:
    """An answer that ended early has its end token, and what its block holds behind that, in the replay."""
    params = replace(WARM, gen_length=48, temperature=1.5)
    found = rollouts_of().generate([(5, 6, 7)], params, n=16)
    ended = [one for one in found if one.finish_reason == "stop"]
    assert ended
    for one in ended:
        assert one.replay_token_ids[len(one.token_ids)] in (510, 509)
        last = len(one.token_ids) // 8 * 8
        assert min(one.replay_step_map[last : last + 8]) > 0
        assert set(one.replay_token_ids[last + 8 :]) <= {511}
    assert any(len(one.replay_token_ids) > len(one.token_ids) + 1 for one in ended)


def test_invariance_of_rollouts() -> None:
    """A group is what its samples would be alone, in a decoder of one, in any order of prompts."""
    batch = rollouts_of().generate(PROMPTS, WARM, n=4)
    assert [(one.prompt_index, one.sample_index) for one in batch] == [(p, s) for p in range(3) for s in range(4)]
    single = rollouts_of(options=replace(OPTIONS, max_num_seqs=1))
    for index in (2, 0, 1):
        alone = single.generate([PROMPTS[index]], WARM, n=4)
        assert [replace(one, prompt_index=index) for one in alone] == batch[4 * index : 4 * index + 4]
    assert len({one.replay_token_ids for one in batch[:4]}) == 4


def test_seeds_are_drawn_told_and_reproduce() -> None:
    rollouts = rollouts_of()
    first, second = (rollouts.generate(PROMPTS[:2], replace(WARM, seed=None), n=2) for _ in range(2))
    assert len({one.seed for one in (*first, *second)}) == 4
    again = rollouts.generate(PROMPTS[:2], [replace(WARM, seed=first[0].seed), replace(WARM, seed=first[2].seed)], n=2)
    assert again == first


def test_texts_and_stop_strings_are_those_of_the_front_door() -> None:
    params = SamplingParams(gen_length=32, temperature=1.0, seed=7, stop=["1", "e"], record=True)
    with LLM("demo", device="cpu") as llm:
        items = llm.generate(TEXTS, params, use_tqdm=False)
    found = Rollouts.load("demo", device="cpu").generate(TEXTS, params)
    assert [list(one.token_ids) for one in found] == [item["token_ids"] for item in items]
    assert [one.finish_reason for one in found] == [item["finish_reason"] for item in items]
    assert [list(one.step_map) for one in found] == [item["step_map"] for item in items]
    assert [list(one.logprobs_raw[: len(one.token_ids)]) for one in found] == [item["logprobs"] for item in items]


def test_distributions_may_be_left_out() -> None:
    rollouts = rollouts_of()
    whole, without = (rollouts.generate(PROMPTS, WARM, distributions=flag) for flag in (True, False))
    assert [replace(one, logprobs_processed=(), entropies=()) for one in whole] == without


def test_wrong_prompts_are_all_named_and_nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = rollouts_of()
    monkeypatch.setattr(Decoder, "step", lambda self: pytest.fail("it decoded"))
    with pytest.raises(RequestError) as caught:
        rollouts.generate([(5,), (), "a text", (9999,)], WARM)
    said = str(caught.value)
    assert "prompts[0]" not in said
    for part in ("prompts[1]: the prompt is empty", "prompts[2]: a text needs a tokenizer", "prompts[3]: prompt token"):
        assert part in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"params": replace(WARM, n=2)}, "n=2 in the parameters"),
        ({"params": replace(WARM, stop="x")}, "stop strings need a tokenizer"),
        ({"params": replace(WARM, algorithm="llada2")}, "cannot run on a llada model"),
        ({"params": WARM, "n": 0}, "n=0 must be"),
        ({"params": [WARM, WARM]}, "2 params for 1 prompts"),
    ],
)
def test_parameters_that_cannot_be_had_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        rollouts_of().generate([PROMPTS[0]], **arguments)  # type: ignore[arg-type]  # that is the test


def test_no_prompts_give_no_rollouts() -> None:
    assert rollouts_of().generate([], WARM, n=3) == []


# One at a time


def test_an_update_in_mid_generation_is_refused_and_changes_nothing() -> None:
    rollouts = rollouts_of()
    undisturbed = rollouts.generate(PROMPTS, WARM)
    new = stored(fresh(stirred=0.3))
    refused: list[str] = []

    def disturb(_: object) -> None:
        for attempt in (
            lambda: rollouts.update_weights(new, version=1),
            lambda: rollouts.sleep(),
            lambda: rollouts.flush_cache(),
            lambda: rollouts.generate(PROMPTS, WARM),
        ):
            with pytest.raises(RunError, match="generate is in progress; wait until it returns") as caught:
                attempt()
            refused.append(str(caught.value))

    assert rollouts.generate(PROMPTS, WARM, on_step=disturb) == undisturbed
    assert len(refused) >= 4
    assert rollouts.weight_version == 0
    rollouts.update_weights(new, version=1)
    assert [one.replay_token_ids for one in rollouts.generate(PROMPTS, WARM)] != [
        one.replay_token_ids for one in undisturbed
    ]


def test_an_update_from_another_thread_is_refused_too() -> None:
    rollouts, new = rollouts_of(), stored(fresh(stirred=0.3))
    inside, leave = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=rollouts.generate, args=(PROMPTS, WARM), kwargs={"on_step": lambda _: (inside.set(), leave.wait(30))}
    )
    thread.start()
    assert inside.wait(30)
    with pytest.raises(RunError, match="an update of the weights: generate is in progress"):
        rollouts.update_weights(new, version=1)
    leave.set()
    thread.join(30)
    assert not thread.is_alive()
    rollouts.update_weights(new, version=1)


def test_a_callback_that_raises_leaves_it_usable() -> None:
    rollouts = rollouts_of()
    before = rollouts.generate(PROMPTS, WARM)

    def fail(_: object) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        rollouts.generate(PROMPTS, WARM, on_step=fail)
    assert rollouts.generate(PROMPTS, WARM) == before


def test_a_forward_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = rollouts_of()
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "_forward", lambda self, batch: (_ for _ in ()).throw(MemoryError("none left")))
        with pytest.raises(MemoryError, match="none left"):
            rollouts.generate(PROMPTS, WARM)
    assert len(rollouts.generate(PROMPTS, WARM)) == 3


# Scores and gradients


def test_logits_that_are_not_finite_are_told_and_harm_no_later_call() -> None:
    subject = rollouts_of("llada")
    [wanted] = subject.generate([PROMPTS[1]], WARM)
    damage(subject._ready_decoder(), lambda canvas: canvas.request.prompt_ids == tuple(PROMPTS[0]))
    with pytest.raises(RunError, match=r"prompts\[0\] could not be decoded: the logits of position"):
        subject.generate(PROMPTS[:2], WARM)
    [again] = subject.generate([PROMPTS[1]], WARM)
    assert again.token_ids == wanted.token_ids


def test_scores_are_those_of_the_likelihoods() -> None:
    rollouts = rollouts_of()
    model = rollouts.checkpoint
    direct = Likelihood(model.backbone, model.special)
    completions = [(4, 5, 6), (7, 8), (9,)]
    for name, scheme in rollouts_schemes().items():
        mine = rollouts.score(PROMPTS, completions, scheme=name, seed=2, per_token=True)
        theirs = direct.score(PROMPTS, completions, scheme, seed=2, per_token=True)
        assert torch.equal(mine.mean, theirs.mean)
        assert torch.equal(mine.stderr.nan_to_num(-1), theirs.stderr.nan_to_num(-1))
        assert mine.per_token is not None
        single = rollouts.score(torch.tensor(PROMPTS[0]), completions[0], scheme=name, seed=2)
        assert torch.equal(single.mean, mine.mean[:1])
    fewer = rollouts.score(PROMPTS[0], completions[0], scheme="llada_mc", mc_num=2)
    assert fewer.stderr > rollouts.score(PROMPTS[0], completions[0], scheme="llada_mc", mc_num=500).stderr
    assert rollouts.score(PROMPTS[0], completions[0], scheme=Coupled(num_pairs=3)).mean.shape == (1,)


def rollouts_schemes() -> dict[str, object]:
    from dlm.likelihood import SCHEMES

    assert set(SCHEMES) == {"llada_mc", "d1_onestep", "coupled", "block_causal", "ar"}
    return {name: kind() for name, kind in SCHEMES.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "elbo"}, "scheme='elbo' is unknown; known: llada_mc, d1_onestep"),
        ({"scheme": "ar", "mc_num": 4}, "mc_num=4 applies only to scheme='llada_mc'"),
        ({"scheme": Coupled(), "mc_num": 4}, "mc_num=4 applies only to"),
        ({"scheme": "ar", "gradients": True}, "no parameter of the model has requires_grad"),
    ],
)
def test_scores_that_cannot_be_had_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        rollouts_of().score((1, 2), (3, 4), **arguments)  # type: ignore[arg-type]  # that is the test


@pytest.mark.parametrize("given", ["a", ["a"], ["a", "b"]])
def test_texts_are_not_scored(given: object) -> None:
    with pytest.raises(RequestError, match="score takes token ids, not texts; encode them first"):
        rollouts_of().score(given, given, scheme="ar")  # type: ignore[arg-type]  # that is the test


def test_a_training_step_through_shared_weights() -> None:
    """Rollouts, a policy gradient, an optimizer's step in place, and rollouts of the new weights."""
    model = fresh()
    model.backbone.train().requires_grad_(True)
    rollouts = Rollouts(model, trainer=model.backbone, options=OPTIONS)
    assert rollouts.shared
    before = rollouts.generate(PROMPTS, FULL, n=2)
    policy = rollouts.replay(before, gradients=True)
    np.testing.assert_allclose(policy[0].detach().numpy(), before[0].logprobs_raw, atol=1e-4)
    loss = -torch.stack([each.sum() for each in policy]).mean()
    loss = (
        loss - rollouts.score(PROMPTS[0], before[0].token_ids or (1,), scheme="d1_onestep", gradients=True).mean.sum()
    )
    loss.backward()
    optimizer = torch.optim.SGD(model.backbone.parameters(), lr=0.05)
    optimizer.step()
    rollouts.sync(version=1)
    after = rollouts.generate(PROMPTS, FULL, n=2)
    assert {one.weight_version for one in before} == {0}
    assert {one.weight_version for one in after} == {1}
    assert [one.replay_token_ids for one in after] != [one.replay_token_ids for one in before]
    independent = fresh()
    independent.backbone.load_state_dict(model.backbone.state_dict())
    assert Rollouts(independent, options=OPTIONS, weight_version=1).generate(PROMPTS, FULL, n=2) == after
    with pytest.raises(RunError, match="the weights are shared with the trainer; change them there and call sync"):
        rollouts.update_weights(stored(independent), version=2)
    with pytest.raises(RunError, match="cannot be offloaded"):
        rollouts.sleep(["weights"])
    rollouts.sleep()
    assert model.backbone.embedding.weight.numel() > 0
    rollouts.wake()
    assert rollouts.generate(PROMPTS, FULL, n=2) == after


def test_a_trainer_beside_scores_and_is_copied_by_sync() -> None:
    """A float64 trainer and a float32 copy that decodes."""
    trained = fresh(stirred=0.2).backbone.double().requires_grad_(True)
    rollouts = rollouts_of(trainer=trained)
    assert not rollouts.shared
    before = rollouts.generate(PROMPTS, FULL)
    assert (rollouts.replay(before)[0] - torch.tensor(before[0].logprobs_raw)).abs().max() > 0.01
    rollouts.sync(version=5)
    after = rollouts.generate(PROMPTS, FULL)
    policy = rollouts.replay(after, gradients=True)
    policy[0].sum().backward()
    assert trained.embedding.weight.grad is not None
    assert (policy[0].detach() - torch.tensor(after[0].logprobs_raw)).abs().max() < 1e-3
    assert after[0].weight_version == 5
    rollouts.sleep()
    assert rollouts.score(PROMPTS[0], (1, 2), scheme="ar").mean.isfinite().all()


def test_autocast_around_it_does_not_reach_the_decoder() -> None:
    rollouts = rollouts_of()
    plain = rollouts.generate(PROMPTS, WARM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rollouts.generate(PROMPTS, WARM) == plain


def test_a_trainer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="different architectures"):
        rollouts_of(trainer=fresh("llada").backbone)
    with pytest.raises(ConfigError, match="trainer is a Linear; pass the Backbone inside it"):
        rollouts_of(trainer=torch.nn.Linear(2, 2))
    with pytest.raises(RunError, match="there is no trainer module; use update_weights"):
        rollouts_of().sync(version=1)
