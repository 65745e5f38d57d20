"""One-sentence descriptions of parameters for clients, shown by `GET /generation/algorithms`, `/openapi.json` and the
page. The docstrings of engines and samplers describe them for programmers."""

from __future__ import annotations

from collections.abc import Mapping

OF_REQUESTS: Mapping[str, str] = {
    "gen_length": "Masked positions after the prompt. Default: max_tokens rounded up to whole blocks, or the server's.",
    "max_tokens": "Maximum number of tokens returned.",
    "steps": "Forwards over which the schedule spreads the answer, for samplers with a schedule.",
    "block_length": "Positions per block; blocks are decoded from left to right.",
    "align_blocks": "Align blocks to multiples of block_length; the first may then hold the end of the prompt.",
    "temperature": "Sampling temperature; 0 takes the most probable token.",
    "top_k": "Sample from the k most probable tokens; 0 keeps all. Not used at temperature 0.",
    "top_p": "Sample from the most probable tokens with this total probability. Not used at temperature 0.",
    "cfg_scale": "Classifier-free guidance scale; above 0, each forward is computed with and without the prompt.",
    "max_nfe": "Maximum number of forwards, at least one per block; if needed, more tokens are revealed at once.",
    "initial_gen_length": "Start with this many masked positions and grow, up to gen_length, as the model needs.",
    "expansion_factor": "Positions added to a growing answer at once.",
    "eos_check_tokens": "Last positions whose EOS confidence decides whether a growing answer is long enough.",
    "eos_confidence_threshold": "Before decoding, the answer grows while its EOS confidence is below this.",
    "expand_eos_confidence_threshold": "During decoding, masks are inserted while the EOS confidence is below this.",
    "low_conf_threshold": "Masks are inserted where the confidence at a masked position is below this.",
    "ignore_eos": "Decode the whole canvas, including past the end of the answer.",
    "eos_early_stop": "Stop within a block as soon as EOS is revealed and no position before it is masked.",
    "logits_eos_inf": "Never choose the end-of-sequence token.",
    "confidence_eos_eot_inf": "Reveal positions that propose end of sequence or end of turn last.",
    "seed": "Random seed; the same seed gives the same answer. Default: one is drawn and returned.",
}
"""By name: parameters of every request."""

OF_ALGORITHMS: Mapping[str, str] = {
    "remasking": "Which positions are revealed first: by highest probability (low_confidence), at random, by lowest "
    "entropy, or by largest margin over the second token.",
    "threshold": "Positions whose proposed token has at least this probability are revealed together.",
    "factor": "The larger, the more is revealed at once: rank r needs probability 1 - factor / (r + 1).",
    "low_threshold": "The best position of each run of masks is revealed if its probability is above this.",
    "remask_threshold": "Revealed positions whose best token has a probability below this are decoded again.",
    "credit_alpha": "Weight of the credit added to the logits.",
    "boost_gamma": "A token's credit grows by its probability raised to this power.",
    "decay_beta": "Fraction of the credit kept after each forward.",
    "gamma": "Bound on the total entropy of positions revealed together, without the largest one.",
    "kl_threshold": "A position is stable while its distribution moves by at most this divergence in a forward.",
    "history": "Number of forwards for which a position must have been stable.",
    "steps_per_block": "Number of forwards over which a block's positions are spread.",
    "minimal_topk": "A block takes at most gen_length / minimal_topk forwards.",
    "editing_threshold": "A token of the block is replaced if the one proposed instead has a probability above this.",
    "num_to_transfer": "Positions revealed if none reaches the threshold.",
    "max_post_steps": "Maximum number of forwards that edit a block after its last mask is revealed.",
    "remasking_strategy": "Reveal all confident positions (low_confidence_dynamic), the scheduled number by "
    "probability (low_confidence_static), or from the left (sequential).",
    "confidence_threshold": "Positions with a probability above this count as confident.",
    "alg": "Which positions are revealed first: by probability (maskgit_plus), margin (topk_margin), entropy, or "
    "each independently at random (origin).",
    "alg_temp": "Temperature for the choice of positions; above 0 they are sampled.",
    "eps": "Final time of the schedule.",
    "prefix_look": "Positions before the block that are recomputed with it.",
    "after_look": "Positions after the block that are recomputed with it.",
    "warmup_steps": "Forwards of the whole canvas before anything is cached.",
    "maximum_unroll": "Maximum number of forwards between checks for whether the block is finished.",
    "expected_tpf": "Expected tokens per forward; sets how often the block is checked.",
    "cont_weight_init": "Weight of the predicted tokens in a masked position's input, at the first forward.",
    "cont_weight_growth": "Increase of that weight per forward.",
    "cont_weight": "Maximum of that weight.",
    "threshold_decay": "Decrease of the threshold per forward, from 1 down to threshold.",
    "retention_ratio": "Fraction of the positions outside the block whose keys and values are kept.",
    "delay_step": "Forwards of a block before the one that selects what is kept.",
    "kernel_size": "Width of the max-pooling window over scores; odd.",
    "head_select": "Each key/value head keeps its own positions; if false, all heads keep the same.",
}
"""By name: parameters of some algorithms."""
