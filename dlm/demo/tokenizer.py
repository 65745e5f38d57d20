"""Build the demo's tokenizer: byte-level BPE of 1,024 tokens with LLaDA's special tokens and chat template.

The numbers of the tasks are single tokens and any text round-trips.

    python -m dlm.demo.tokenizer folder

writes the bundled checkpoint's tokenizer, the same files on every machine. Other tasks give other ids and need a new
model (`python -m dlm.train experiment=demo model.tokenizer=folder`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dlm.demo.tasks import training_examples
from dlm.demo.words import CAPITALS, CATEGORIES, ENGLISH, ITEMS, NOUNS

VOCAB_SIZE = 1024
SEED = 1
SPECIAL_TOKENS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|mdm_mask|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
MAX_LENGTH = 1024

SPLIT = r" ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Words and numbers of up to two digits with their leading space, punctuation, line ends, spaces."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def corpus() -> Iterator[str]:
    """Text of the tasks, and enough English that other prompts are not split into bytes."""
    for example in islice(training_examples(SEED), 20_000):
        yield f"user\n\n{example.question}"
        yield f"assistant\n\n{example.answer}"
    groups = (ITEMS, NOUNS, CAPITALS, CAPITALS.values(), *CATEGORIES.values())
    words = [word for group in groups for word in group]
    for _ in range(100):
        yield from (f"{word} {word}" for word in (*words, *range(100)))
        yield from ("system\n\n", "user\n\n", "assistant\n\n")
        yield ENGLISH


def build() -> PreTrainedTokenizerFast:
    """Train the tokenizer; the same files on every machine."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers is untyped
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        mask_token="<|mdm_mask|>",
        additional_special_tokens=["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


if __name__ == "__main__":
    build().save_pretrained(Path(sys.argv[1]))
