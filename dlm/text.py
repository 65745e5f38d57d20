"""Text to token ids and back: chat template, stop strings. The one place where text is handled.

Knows neither models nor torch.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from dlm.errors import CheckpointError, RequestError

HALF_PAIR = re.compile(r"[\ud800-\udfff]")


class TextCodec:
    """A checkpoint's tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        chat: wrap prompts in the chat template; None wraps when there is one.

    Raises:
        CheckpointError: `chat` is asked for and the tokenizer has no template.
    """

    def __init__(self, tokenizer: Any, chat: bool | None = None) -> None:
        self.tokenizer = tokenizer
        has_template = getattr(tokenizer, "chat_template", None) is not None
        if chat and not has_template:
            raise CheckpointError("the tokenizer has no chat template: set data.chat_template=false")
        self.chat = has_template if chat is None else chat
        self._lock = threading.Lock()  # how special tokens are read is a state of the tokenizer

    @classmethod
    def load(cls, folder: Path, chat: bool | None = None) -> TextCodec:
        """The tokenizer of a checkpoint folder; nothing is fetched and no code from the folder is run."""
        from transformers import AutoTokenizer, PretrainedConfig

        # Without a config transformers reads the model's own and warns that it does not know its type.
        options = {"local_files_only": True, "trust_remote_code": False, "config": PretrainedConfig()}
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        except Exception as error:  # transformers raises OSError, ValueError, KeyError and tokenizers' own
            raise CheckpointError(f"{folder}: no usable tokenizer ({error})") from error
        return cls(tokenizer, chat)

    def check_fits(self, content: str | Sequence[Mapping[str, str]], positions: int) -> None:
        """Refuse a prompt that `positions` tokens cannot hold whichever they are: to tokenize 10 MB takes a minute, and
        to count its characters nothing.

        Raises:
            RequestError: it has more characters than that many of the longest tokens.
        """
        texts = [content] if isinstance(content, str) else [message["content"] for message in content]
        characters = sum(map(len, texts))
        if characters > positions * self._longest_token:
            raise RequestError(
                f"the prompt has {characters} characters, more than the {positions} tokens of this model can hold; "
                "shorten it"
            )

    @cached_property
    def _longest_token(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.tokenizer.get_vocab()))

    def encode(self, content: str | list[dict[str, str]]) -> tuple[int, ...]:
        """Token ids of a prompt: text, or chat messages. Special tokens that a message names are text in it.

        Raises:
            RequestError: messages without a chat template, or messages that the template refuses; half of a surrogate
                pair, here and below.
        """
        if isinstance(content, str) and not self.chat:
            return self._tokenized(content)
        if not self.chat:
            raise RequestError(
                "the prompt is a list of messages, and the chat template is off: data.chat_template=true"
            )
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        named = _Named(self.tokenizer, [message["content"] for message in messages])
        hidden = [{**message, "content": named.hide(message["content"])} for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(hidden, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # jinja2's errors, and whatever a template raises
            raise RequestError(f"the chat template refuses the messages: {error}") from error
        return tuple(token for piece, literal in named.pieces(text) for token in self._ids(piece, literal))

    def encode_literally(self, text: str) -> tuple[int, ...]:
        """Token ids of a text without a template; special tokens that it names are text."""
        named = _Named(self.tokenizer, [text])
        if not named.found:
            return self._tokenized(text)
        whole = self._ids(text, literal=True)
        plain = self.tokenizer("a")["input_ids"]  # what the tokenizer puts before every text
        lead = plain[: len(plain) - len(self._ids("a", literal=False))]
        return (*lead, *whole)

    def encode_continuation(self, text: str) -> tuple[int, ...]:
        """Token ids of a text that goes on from other tokens: nothing is put before it, and special tokens that it
        names are text."""
        return self._ids(text, literal=True)

    def _ids(self, text: str, literal: bool) -> tuple[int, ...]:
        options = {"split_special_tokens": True} if literal else {}
        with self._lock:
            return self._tokenized(text, add_special_tokens=False, **options)

    def _tokenized(self, text: str, **options: bool) -> tuple[int, ...]:
        """Raises `RequestError` for half of a surrogate pair, which JSON can write and no tokenizer reads."""
        half = HALF_PAIR.search(text)
        if half is not None:
            raise RequestError(
                f"the text has half of a surrogate pair (U+{ord(half[0]):04X}), which is no character; leave it out"
            )
        return tuple(self.tokenizer(text, **options)["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated tokens, special tokens left out."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def piece(self, token_id: int) -> str:
        """Text of one token, special ones by their names."""
        text: str = self.tokenizer.decode([token_id], skip_special_tokens=False)
        return text

    def show(self, token_ids: Sequence[int], stop: Sequence[str]) -> tuple[str, list[int], bool]:
        """What a reader gets of generated tokens: their text before the first stop string, the fewest of them that show
        it, and whether there was a stop string."""
        text, kept = self.decode(token_ids), list(token_ids)
        place = first_stop(text, stop)
        if place is None:
            return text, kept, False
        text = text[:place]
        count = bisect_left(range(len(kept)), True, key=lambda count: self.decode(kept[:count]).startswith(text))
        return text, kept[:count], True

    def stop_check(self, stop: Sequence[str]) -> Callable[[Sequence[int]], bool] | None:
        """Whether the text of generated tokens holds one of `stop`; None when there is nothing to look for."""
        strings = tuple(stop)
        if not strings:
            return None
        return lambda token_ids: first_stop(self.decode(token_ids), strings) is not None


class _Named:
    """Special tokens that users wrote into their messages, kept apart from those that the chat template writes.

    Args:
        tokenizer: knows which tokens are special.
        texts: what users wrote.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
        self.found = any(self._special.search(text) for text in texts)
        number = 0
        while any(self._mark(number) in text for text in texts):
            number += 1
        self._boundary = self._mark(number)

    @staticmethod
    def _mark(number: int) -> str:
        """Text that no template changes and hardly anybody writes."""
        return f"\ue000{number}\ue001"

    def hide(self, text: str) -> str:
        """The text with its special tokens marked."""
        if not self.found:
            return text
        return self._special.sub(lambda match: f"{self._boundary}{match[0]}{self._boundary}", text)

    def pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """A rendered text in pieces; True for those in which special tokens are text."""
        if not self.found:
            yield text, False
            return
        for index, piece in enumerate(text.split(self._boundary)):
            if piece:
                yield piece, bool(index % 2)


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest of the stop strings begins."""
    found = [place for string in stop if (place := text.find(string)) >= 0]
    return min(found) if found else None
