"""Whether a request can be decoded by a given model in a given arena, and if not, every reason at once."""

from __future__ import annotations

from dlm.decoding.canvas import Canvas
from dlm.errors import RequestError
from dlm.models.architecture import BackboneConfig
from dlm.models.families import SpecialTokens


def faults_of(canvas: Canvas, config: BackboneConfig, special: SpecialTokens, capacity: int) -> list[str]:
    """What stands against a canvas that has not begun; empty when nothing does.

    Args:
        canvas: of the request.
        config: the model's architecture.
        special: its special ids.
        capacity: arena slots in all.
    """
    request, params = canvas.request, canvas.request.params
    prompt, engine, sampler = request.prompt_ids, request.engine, request.sampler
    faults = []
    if not prompt:
        faults.append("the prompt is empty; give at least one token")
    if canvas.ceiling > config.max_positions:
        faults.append(
            f"prompt of {len(prompt)} tokens and gen_length={params.gen_length} make {canvas.ceiling} positions, "
            f"the model has {config.max_positions}; shorten one of them"
        )
    if request.token_stats and not params.record:
        faults.append("token_stats=True goes with record=True; set it too")
    if params.logits_eos_inf and special.eos_id is None:
        faults.append("logits_eos_inf needs an end-of-sequence token, the model names none")
    if params.initial_gen_length is not None:
        faults += _growth_faults(canvas, special)
    if engine.attention != config.attention or (config.shifted and not engine.takes_shifted):
        model = f"{'shifted ' * config.shifted}{config.attention}"
        faults.append(f"engine {engine.name} is not for a model whose attention is {model}; algorithm=auto fits")
    if (engine.name == "linear_spec") != (sampler.name == "linear_spec"):
        faults.append(f"engine {engine.name} does not go with sampler {sampler.name}; use linear_spec for both")
    if engine.one_block and canvas.given[canvas.block_start :].any():
        faults.append(f"engine {engine.name} cannot fill in masks that stand before given tokens; use algorithm=ar")
    if engine.smoothing is not None and (canvas.guided or sampler.track):
        what = f"cfg_scale={params.cfg_scale}" if canvas.guided else f"sampler {sampler.name}"
        faults.append(f"{what} is not defined with the smoothed inputs of engine {engine.name}")
    slots = engine.slots(canvas) * (2 if canvas.guided else 1)
    if slots > capacity:
        faults.append(f"the request needs {slots} arena slots, the arena has {capacity}; raise arena_tokens")
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
        faults.append(f"{asked} needs an end-of-sequence token, the model names none")
    if not engine.grows:
        why = "opens blocks as they are needed" if engine.attention != "bidirectional" else "keeps places in the canvas"
        faults.append(f"{asked}: engine {engine.name} {why}; full, prefix_cache and dual_cache let an answer grow")
    return faults
