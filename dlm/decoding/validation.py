"""Checks whether a model and an arena can decode a request, and reports every reason if not."""

from __future__ import annotations

from dlm.decoding.canvas import Canvas
from dlm.errors import RequestError
from dlm.models.architecture import BackboneConfig
from dlm.models.families import SpecialTokens


def faults_of(canvas: Canvas, config: BackboneConfig, special: SpecialTokens, capacity: int) -> list[str]:
    """Reasons why a canvas cannot be decoded; empty if there are none.

    Args:
        canvas: of the request, before its first forward.
        config: the model's architecture.
        special: its special token ids.
        capacity: total arena slots.
    """
    request, params = canvas.request, canvas.request.params
    prompt, engine, sampler = request.prompt_ids, request.engine, request.sampler
    faults = []
    if not prompt:
        faults.append("the prompt is empty; give at least one token")
    if canvas.ceiling > config.max_positions:
        faults.append(
            f"prompt of {len(prompt)} tokens and gen_length={params.gen_length} make {canvas.ceiling} positions, "
            f"but the model has {config.max_positions}; shorten one of them"
        )
    if request.token_stats and not params.record:
        faults.append("token_stats=True requires record=True; set both")
    if params.logits_eos_inf and special.eos_id is None:
        faults.append("logits_eos_inf needs an end-of-sequence token, but the model defines none")
    if params.initial_gen_length is not None:
        faults += _growth_faults(canvas, special)
    if engine.attention != config.attention or (config.shifted and not engine.takes_shifted):
        model = f"{'shifted ' * config.shifted}{config.attention}"
        faults.append(f"engine {engine.name} does not support a model with {model} attention; use algorithm=auto")
    if (engine.name == "linear_spec") != (sampler.name == "linear_spec"):
        faults.append(f"engine {engine.name} cannot run with sampler {sampler.name}; use linear_spec for both")
    if engine.one_block and canvas.given[canvas.block_start :].any():
        faults.append(f"engine {engine.name} cannot fill in masks that precede given tokens; use algorithm=ar")
    if engine.smoothing is not None and (canvas.guided or sampler.track):
        what = f"cfg_scale={params.cfg_scale}" if canvas.guided else f"sampler {sampler.name}"
        faults.append(f"{what} is not defined with the smoothed inputs of engine {engine.name}")
    slots = engine.slots(canvas) * (2 if canvas.guided else 1)
    if slots > capacity:
        faults.append(f"the request needs {slots} arena slots, but the arena has {capacity}; raise arena_tokens")
    least = canvas.reserved(0)
    if params.max_nfe is not None and params.max_nfe < least:
        faults.append(f"max_nfe={params.max_nfe} must be at least {least} with this engine and block_length")
    try:
        sampler.check(params, len(canvas.blocks))
    except RequestError as error:
        faults.append(str(error))
    return faults


def _growth_faults(canvas: Canvas, special: SpecialTokens) -> list[str]:
    asked = f"initial_gen_length={canvas.request.params.initial_gen_length}"
    engine, faults = canvas.request.engine, []
    if special.eos_id is None:
        faults.append(f"{asked} needs an end-of-sequence token, but the model defines none")
    if not engine.grows:
        why = "opens blocks on demand" if engine.attention != "bidirectional" else "keeps state by canvas position"
        faults.append(f"{asked}: engine {engine.name} {why}; use full, prefix_cache or dual_cache")
    return faults
