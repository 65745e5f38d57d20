"""Keys of a config.json that all families share: those that any program may write, and the sizes that are sensible.

The bounds are far above every released model. They keep what a file says from taking memory or hours before it is
compared with the weights.
"""

from __future__ import annotations

from collections.abc import Iterator

from dlm.models.families.keys import Boolean, Integer, Key, OneOrMany, Only, Real, Relation, Text, Values

LAYERS = Integer(1, 512)
WIDTH = Integer(1, 2**20)
VOCABULARY = Integer(2, 2**24)
HEADS = Integer(1, 4096)
HEAD_DIM = Integer(2, 4096)
POSITIONS = Integer(1, 2**22)
EXPERTS = Integer(1, 4096)
BLOCK = Integer(1, 2**16)
EPSILON = Real(1e-20, 1.0)
FLAG = Boolean()
TOKEN_ID = Integer(0, VOCABULARY.high - 1)
END_IDS = OneOrMany(TOKEN_ID)

ROTARY_TABLE = 2**28
"""Positions times rotated dimensions: the tables of cosines and sines have half as many numbers each."""

EXPERT_LAYERS = 2**17
"""Layers times experts, each of which has tensors of its own."""

SHARED_KEYS = (
    Key("dtype", Text(), optional=True),
    Key("torch_dtype", Text(), optional=True),
    Key("is_encoder_decoder", Only(False), optional=True),
    Key("add_cross_attention", Only(False), optional=True),
    Key("pruned_heads", Only({}), optional=True),
    Key("layer_types", OneOrMany(Only("full_attention")), "of each layer", optional=True),
)
"""Keys that transformers may write into the config of any model, and that say something of the computation."""

IDENTITY = frozenset({
    "architectures", "model_type", "auto_map", "transformers_version", "_name_or_path", "name_or_path", "_commit_hash",
    "tokenizer_class", "finetuning_task", "task_specific_params", "problem_type", "num_labels", "id2label", "label2id",
    "unsloth_version", "unsloth_fixed",
})  # fmt: skip
TRAINING = frozenset({
    "initializer_range", "attention_dropout", "gradient_checkpointing", "tf_legacy_loss", "use_bfloat16", "torchscript",
})  # fmt: skip
EXECUTION = frozenset({
    "use_cache", "return_dict", "use_return_dict", "output_attentions", "output_hidden_states",
    "tie_last_hidden_states", "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
    "_attn_implementation_internal", "experts_implementation", "_experts_implementation",
    "_experts_implementation_internal", "pretraining_tp", "is_decoder", "tie_encoder_decoder",
    "cross_attention_hidden_size", "chunk_size_feed_forward",
})  # fmt: skip
GENERATION = frozenset({
    "bos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id", "prefix", "max_length",
    "max_new_tokens", "min_length", "min_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores",
    "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "epsilon_cutoff", "eta_cutoff",
    "encoder_repetition_penalty", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind",
})  # fmt: skip
IGNORED = IDENTITY | TRAINING | EXECUTION | GENERATION
"""Keys that change nothing of what is computed here: names and labels, what only training reads, how another program
runs the model, and defaults of its generation."""

QUANTISED = "quantised weights are not read; convert the model to bfloat16 or float32"
UNSUPPORTED = {
    "quantization_config": QUANTISED,
    "quantization": QUANTISED,
    "compression_config": QUANTISED,
    "per_layer_config": "all layers of a model here are alike",
}
"""Keys of any model that change the computation."""


def ids_within(*vocabulary: str) -> Relation:
    """The ids of the mask and the ends lie in the vocabulary, whose size is the first of these keys that is given."""

    def check(values: Values) -> Iterator[str]:
        key = next(name for name in vocabulary if values[name] is not None)
        size, mask = values[key], values["mask_token_id"]
        ends = values["eos_token_id"] or ()
        for name, ids in (("mask_token_id", () if mask is None else (mask,)), ("eos_token_id", ends)):
            yield from (f"{name}={each} must be below {key}={size}" for each in ids if each >= size)
        if mask in ends:
            yield f"mask_token_id={mask} must not be among eos_token_id={list(ends)}: the mask is never an answer"

    return Relation((*vocabulary, "mask_token_id", "eos_token_id"), check)


def experts_within() -> Relation:
    """A token goes to at most all experts, and a model has a number of them that can be told from a mistake."""

    keys = ("num_experts", "num_experts_per_tok", "num_hidden_layers")

    def check(values: Values) -> Iterator[str]:
        experts, chosen, depth = (values[key] for key in keys)
        if chosen > experts:
            yield f"num_experts_per_tok={chosen} must be at most num_experts={experts}"
        if experts * depth > EXPERT_LAYERS:
            yield f"num_experts={experts} times num_hidden_layers={depth} must be at most {EXPERT_LAYERS}"

    return Relation(keys, check)
