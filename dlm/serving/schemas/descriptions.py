"""What each parameter does, in a sentence for clients: `GET /generation/algorithms`, `/openapi.json` and the page show
it. What programmers are told stands with the engines and samplers that have the parameter."""

from __future__ import annotations

from collections.abc import Mapping

OF_REQUESTS: Mapping[str, str] = {
    "gen_length": "Masked positions behind the prompt; left out, max_tokens in whole blocks or the server's default.",
    "max_tokens": "At most so many tokens are returned.",
    "steps": "Forwards that the schedule spreads the answer over, for samplers that have a schedule.",
    "block_length": "Positions of a block; blocks are decoded from left to right.",
    "align_blocks": "Blocks lie on multiples of block_length, so that the first may hold the end of the prompt.",
    "temperature": "Spread of the draw of each token; 0 takes the most probable one.",
    "top_k": "Draw from so many most probable tokens; 0 keeps all. Not used at temperature 0.",
    "top_p": "Draw from the most probable tokens that make up this probability. Not used at temperature 0.",
    "cfg_scale": "Strength of classifier-free guidance; above 0 each forward is computed with and without the prompt.",
    "max_nfe": "At most so many forwards, at least one for each block; more is revealed at once where it must be.",
    "initial_gen_length": "Begin with so many masked positions and grow, up to gen_length, as the model asks for it.",
    "expansion_factor": "Positions that a growing answer gains at once.",
    "eos_check_tokens": "Last positions whose confidence in the end says whether a growing answer is long enough.",
    "eos_confidence_threshold": "Before decoding, the answer grows while confidence in its end is below this.",
    "expand_eos_confidence_threshold": "While decoding, masks are put in while confidence in the end is below this.",
    "low_conf_threshold": "Masks are put in where the model's confidence in a mask is below this.",
    "ignore_eos": "Decode the whole canvas, also behind the end of the answer.",
    "eos_early_stop": "Stop inside a block, as soon as the end is there and nothing before it is undecided.",
    "logits_eos_inf": "The end-of-sequence token cannot be chosen.",
    "confidence_eos_eot_inf": "Positions that propose the end of the sequence or the turn are revealed last.",
    "seed": "Of the noise; the same seed gives the same answer. Left out, one is drawn and told.",
}
"""By name of a parameter that every request has."""

OF_ALGORITHMS: Mapping[str, str] = {
    "remasking": "Which positions are revealed first: those of highest probability (low_confidence), at random, of "
    "lowest entropy, or of the largest margin over the second token.",
    "threshold": "Positions whose proposed token has at least this probability are revealed together.",
    "factor": "The larger, the more is revealed at once: rank r needs probability 1 - factor / (r + 1).",
    "low_threshold": "The best position of each run of masks is revealed if its probability is above this.",
    "remask_threshold": "Decided positions whose best token has a probability below this are decided again.",
    "credit_alpha": "Weight of the credit that is added to the logits.",
    "boost_gamma": "A token gains its probability to the power of this as credit.",
    "decay_beta": "Share of the credit that is left after each forward.",
    "gamma": "Entropy that the positions revealed together may have beyond the largest of them.",
    "kl_threshold": "A position is stable while its distribution moves by at most this divergence in a forward.",
    "history": "Forwards that a position must have been stable for.",
    "steps_per_block": "Forwards that share the positions of a block.",
    "minimal_topk": "A block takes at most gen_length / minimal_topk forwards.",
    "editing_threshold": "A token of the block is replaced if the one proposed instead has a probability above this.",
    "num_to_transfer": "Positions that are revealed where none reaches the threshold.",
    "max_post_steps": "Forwards that may still edit a block without masks.",
    "remasking_strategy": "Reveal all that are sure (low_confidence_dynamic), as many as scheduled by probability "
    "(low_confidence_static), or from the left (sequential).",
    "confidence_threshold": "Positions with a probability above this are sure.",
    "alg": "Which positions are revealed first: by probability (maskgit_plus), margin (topk_margin), entropy, or each "
    "by a draw of its own (origin).",
    "alg_temp": "Above 0 the positions are drawn, the more evenly the larger it is.",
    "eps": "Time at which the schedule ends.",
    "prefix_look": "Positions before the block that are recomputed with it.",
    "after_look": "Positions behind the block that are recomputed with it.",
    "warmup_steps": "Forwards of the whole canvas before anything is cached.",
    "maximum_unroll": "At most so many forwards before it is looked whether the block is finished.",
    "expected_tpf": "Tokens that a forward is expected to reveal; says how often it is looked.",
    "cont_weight_init": "Weight of the predicted tokens in what a masked position is fed, at the first forward.",
    "cont_weight_growth": "What that weight gains at each forward.",
    "cont_weight": "What that weight grows to.",
    "threshold_decay": "What the threshold is lowered by at each forward, from 1 down to threshold.",
    "retention_ratio": "Share of the positions outside the block whose keys and values are kept.",
    "delay_step": "Forwards of a block before the one that chooses what is kept.",
    "kernel_size": "Scores are taken as the largest of so many neighbours; odd.",
    "head_select": "Each key/value head keeps its own positions, else all heads keep the same.",
}
"""By name of a parameter that some algorithms have."""
