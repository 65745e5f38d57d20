"""Random requests over everything that the heart offers, for the family that is to decode them."""

from __future__ import annotations

import random
from dataclasses import replace

from dlm.decoding.canvas import Canvas
from dlm.decoding.engines import (
    Autoregressive,
    BlockCausal,
    CausalCommit,
    DualCache,
    Engine,
    Full,
    LinearSpec,
    PrefixCache,
    Smooth,
    Sparse,
    Vicinity,
)
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Completion, Request
from dlm.decoding.samplers import (
    SAMPLERS,
    Credit,
    DInferThreshold,
    Dream,
    EntropyBound,
    Factor,
    FastDLLMDream,
    Fixed,
    Hierarchy,
    Klass,
    Leftmost,
    LLaDA2,
    LLaDA21Edit,
    RemaskHierarchy,
    Sampler,
    Sdar,
    Threshold,
)
from dlm.models.architecture import BackboneConfig
from dlm.models.families import SpecialTokens
from dlm.models.io.loading import Checkpoint
from tests.decoding.worlds import FOLDER as FOLDER
from tests.decoding.worlds import tiny_model


def draw_vicinity(chance: random.Random) -> Vicinity:
    look, pace = chance.choice([0, 3, 16]), (chance.choice([1, 4]), chance.choice([1, 8]))
    return Vicinity(look, chance.choice([0, 5, 16]), chance.choice([0, 1, 4]), *pace)


def draw_sparse(chance: random.Random) -> Sparse:
    ratio, delay = chance.choice([0.0, 0.2, 0.5, 1.0]), chance.choice([0, 1, 2])
    return Sparse(ratio, delay, chance.choice([1, 3, 5]), head_select=chance.random() < 0.5)


def draw_smooth(chance: random.Random) -> Smooth:
    base = chance.choice([Full(), PrefixCache(), DualCache(), draw_vicinity(chance)])
    return Smooth(base, threshold_decay=chance.choice([0.02, 0.2]), maximum_unroll=chance.choice([1, 4]))


def draw_engine(chance: random.Random, config: BackboneConfig) -> Engine:
    """An engine for models that attend so."""
    if config.attention == "block_causal":
        return BlockCausal()
    if config.attention == "causal_context":
        return chance.choice([CausalCommit(), CausalCommit(), Autoregressive(), LinearSpec()])
    shared: list[Engine] = [Full(), PrefixCache(), DualCache()]
    if config.shifted:
        return chance.choice(shared)
    return chance.choice([*shared, draw_vicinity(chance), draw_smooth(chance), draw_sparse(chance)])


def draw_generic(chance: random.Random) -> list[Sampler]:
    """One of each sampler that goes with every engine."""
    bar = chance.choice([0.2, 0.5, 0.9])
    return [
        Fixed(chance.choice(["low_confidence", "random", "entropy", "margin"])),
        Leftmost(),
        Threshold(bar),
        Factor(chance.choice([0.5, 1.0, 2.0])),
        DInferThreshold(chance.choice([0.3, 0.9])),
        Hierarchy(chance.choice([1.0, bar]), chance.choice([0.0, 0.1, 0.4])),
        Credit(bar, chance.choice([0.7, 3.0]), decay_beta=chance.choice([0.5, 0.8])),
        EntropyBound(chance.choice([0.1, 2.0])),
        Klass(bar / 2, chance.choice([0.01, 1.0]), chance.choice([1, 2])),
        RemaskHierarchy(bar, 0.1, chance.choice([0.1, 0.4])),
    ]


def draw_native(chance: random.Random, config: BackboneConfig) -> list[Sampler]:
    """Samplers of models that attend so."""
    bar = chance.choice([0.2, 0.5, 0.9])
    if config.attention == "block_causal":
        rule = chance.choice(["low_confidence_dynamic", "low_confidence_static", "sequential"])
        return [
            LLaDA2(bar, chance.choice([2, 8, 32]), chance.choice([1, 4])),
            LLaDA21Edit(bar, chance.choice([0.2, 0.9]), chance.choice([1, 3]), chance.choice([1, 4])),
            Sdar(rule, bar, chance.choice([None, 2, 5])),
        ]
    if config.shifted:
        alg = chance.choice(["maskgit_plus", "topk_margin", "entropy"])
        return [Dream(alg, chance.choice([0.0, 0.4])), Dream("origin", eps=0.01), FastDLLMDream(bar)]
    return []


def draw_sampler(chance: random.Random, engine: Engine, config: BackboneConfig) -> Sampler:
    if isinstance(engine, LinearSpec):
        return SAMPLERS[engine.name]()
    native = draw_native(chance, config)
    if native and chance.random() < 0.5:
        return chance.choice(native)
    generic = draw_generic(chance)
    if engine.smoothing is not None:  # what is expected there is observed, not how far the distribution moved
        generic = [sampler for sampler in generic if not sampler.track]
    return chance.choice(generic)


def draw_params(chance: random.Random) -> SamplingParams:
    warm, ignore = chance.random() < 0.5, chance.random() < 0.4
    return SamplingParams(
        gen_length=chance.randint(1, 36),
        block_length=chance.choice([3, 8, 16]),
        steps=chance.randint(36, 48),
        align_blocks=chance.random() < 0.3,
        temperature=chance.choice([0.3, 0.7, 1.0, 1.5]) if warm else 0.0,
        top_k=chance.choice([0, 5, 50]) if warm else 0,
        top_p=chance.choice([1.0, 0.9, 0.5]) if warm else 1.0,
        max_tokens=chance.choice([None, None, 5]),
        ignore_eos=ignore,
        eos_early_stop=not ignore and chance.random() < 0.4,
        logits_eos_inf=chance.random() < 0.15,
        confidence_eos_eot_inf=chance.random() < 0.15,
        seed=chance.randint(0, 1000),
        n=chance.choice([1, 1, 1, 2]),
        record=chance.random() < 0.7,
    )


def draw_growth(chance: random.Random, params: SamplingParams) -> SamplingParams:
    """The same, beginning short."""
    return replace(
        params,
        initial_gen_length=chance.randint(1, max(1, params.gen_length // 2)),
        expansion_factor=chance.choice([2, 5]),
        eos_check_tokens=chance.choice([1, 4]),
        eos_confidence_threshold=chance.choice([0.0, 0.01, 0.5]),
        low_conf_threshold=chance.choice([0.3, 0.9]),
    )


def draw_prompt(chance: random.Random, special: SpecialTokens, vocabulary: int) -> tuple[int, ...]:
    prompt = [chance.randrange(vocabulary - 3) for _ in range(chance.randint(1, 50))]
    if chance.random() < 0.2:
        for place in chance.sample(range(len(prompt)), min(3, len(prompt))):
            prompt[place] = special.mask_id
    return tuple(prompt)


def draw_request(chance: random.Random, name: str, model: Checkpoint | None = None) -> Request:
    """A request that the model can decode; the golden checkpoint where none is named."""
    model = tiny_model() if model is None else model
    config, special = model.backbone.config, model.special
    engine = draw_engine(chance, config)
    sampler, params = draw_sampler(chance, engine, config), draw_params(chance)
    if isinstance(sampler, FastDLLMDream):
        whole = max(1, params.gen_length // 4) * 4
        params = replace(params, gen_length=whole, steps=whole // chance.choice([1, 2, 4]))
    elif chance.random() < 0.4:
        params = replace(params, steps=chance.choice([36, 200]))
    if engine.smoothing is None and chance.random() < 0.25:
        params = replace(params, cfg_scale=1.5)
    scheduled = isinstance(sampler, Fixed | Dream | FastDLLMDream)
    if engine.grows and not scheduled and not params.logits_eos_inf and chance.random() < 0.4:
        params = draw_growth(chance, params)
    prompt = draw_prompt(chance, special, config.vocab_size)
    if isinstance(engine, LinearSpec):  # see test_linear_spec_refuses_what_is_given_behind_a_mask
        prompt = tuple(1 if token == special.mask_id else token for token in prompt)
    request = Request(name, prompt, params, engine, sampler, token_stats=params.record and (params.seed or 0) % 2 == 0)
    if chance.random() < 0.25 and not isinstance(engine, LinearSpec):
        least = Canvas(request, 0, 0, special.mask_id, shifted=config.shifted).reserved(0)
        blocks = -(-params.gen_length // params.block_length)
        request = replace(request, params=replace(params, max_nfe=max(least, blocks) + chance.randint(0, 6)))
    return request


def facts(completion: Completion) -> tuple[object, ...]:
    """Everything about a completion but how long it took; NaN-safe and bitwise for log-probabilities."""
    recorded = (completion.logprobs, completion.logprobs_processed, completion.entropies)
    bits = tuple(values and tuple(value.hex() for value in values) for values in recorded)
    return (
        completion.request_id,
        completion.sample,
        completion.seed,
        completion.prompt_ids,
        completion.token_ids,
        completion.canvas_ids,
        completion.finish_reason,
        completion.nfe,
        completion.positions,
        completion.step_map,
        bits,
        completion.error,
    )
