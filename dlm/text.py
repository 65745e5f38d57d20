"""Text to token ids and back: chat template, stop strings. The one place where text is handled.

Knows neither models nor torch.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

from dlm._quoting import reason
from dlm.chat import ChatTemplate, TemplateLimit
from dlm.errors import CheckpointError, RequestError
from dlm.models.io.tokenizers import guarded, load_tokenizer

HALF_PAIR = re.compile(r"[\ud800-\udfff]")


class TextCodec:
    """A checkpoint's tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        chat: wrap prompts in the chat template; None wraps when there is one.

    Raises:
        CheckpointError: `chat` is asked for and the tokenizer has no template, or one that cannot be used.
    """

    def __init__(self, tokenizer: Any, chat: bool | None = None) -> None:
        self.tokenizer = tokenizer
        has_template = getattr(tokenizer, "chat_template", None) is not None
        if chat and not has_template:
            raise CheckpointError("the tokenizer has no chat template: set data.chat_template=false")
        self.chat = has_template if chat is None else chat
        self._template = self._compiled() if self.chat else None

    @classmethod
    def load(cls, folder: Path, chat: bool | None = None) -> TextCodec:
        """The tokenizer of a checkpoint folder; nothing is fetched and no code from the folder is run."""
        tokenizer = load_tokenizer(folder)
        try:
            return cls(tokenizer, chat)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from None

    def _compiled(self) -> ChatTemplate:
        with guarded(lambda why: CheckpointError(f"the tokenizer's chat template cannot be used ({why})")):
            return ChatTemplate(self.tokenizer.get_chat_template())

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """A conversation in the chat template (see `ChatTemplate.render`).

        Raises:
            RequestError: there is no template, or it refuses the messages.
        """
        if self._template is None:
            raise RequestError(
                "the prompt is a list of messages, and the chat template is off: data.chat_template=true"
            )
        try:
            return self._template.render(
                messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **self.tokenizer.special_tokens_map,
            )
        except TemplateLimit as error:
            raise RequestError(f"the chat template cannot be used for the messages: {error}") from None
        except Exception as error:  # jinja2's errors, and whatever a template raises
            raise RequestError(f"the chat template refuses the messages ({reason(error)})") from None

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
        """Token ids of a prompt: text, or chat messages. Control tokens that a message names are text in it.

        Raises:
            RequestError: messages without a chat template, or messages that the template refuses; half of a surrogate
                pair, here and below.
        """
        if isinstance(content, str) and not self.chat:
            return self._tokenized(content)
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        named = _Named(self.tokenizer, [message["content"] for message in messages])
        text = self.render([{**message, "content": named.hide(message["content"])} for message in messages])
        return tuple(token for piece, literal in named.pieces(text) for token in self._ids(piece, literal))

    def encode_literally(self, text: str) -> tuple[int, ...]:
        """Token ids of a text without a template; control tokens that it names are text."""
        named = _Named(self.tokenizer, [text])
        if not named.found:
            return self._tokenized(text)
        whole = self._ids(text, literal=True)
        with _encoding("a"):
            plain = self.tokenizer("a")["input_ids"]  # what the tokenizer puts before every text
        lead = plain[: len(plain) - len(self._ids("a", literal=False))]
        return (*lead, *whole)

    def encode_continuation(self, text: str) -> tuple[int, ...]:
        """Token ids of a text that goes on from other tokens: nothing is put before it, and control tokens that it
        names are text."""
        return self._ids(text, literal=True)

    def _ids(self, text: str, literal: bool) -> tuple[int, ...]:
        if literal:
            with _encoding(text):
                return _as_text(self.tokenizer, text)
        return self._tokenized(text, add_special_tokens=False)

    def _tokenized(self, text: str, **options: bool) -> tuple[int, ...]:
        with _encoding(text):
            return tuple(self.tokenizer(text, **options)["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated tokens, special tokens left out."""
        with _decoding():
            text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def piece(self, token_id: int) -> str:
        """Text of one token, special ones by their names."""
        with _decoding():
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


def _encoding(text: str) -> AbstractContextManager[None]:
    """Raises `RequestError` for half of a surrogate pair, which JSON can write and no tokenizer reads, and inside for
    whatever the tokenizer raises."""
    half = HALF_PAIR.search(text)
    if half is not None:
        raise RequestError(
            f"the text has half of a surrogate pair (U+{ord(half[0]):04X}), which is no character; leave it out"
        )
    return guarded(lambda why: RequestError(f"the tokenizer cannot encode the text ({why})"))


def _decoding() -> AbstractContextManager[None]:
    return guarded(lambda why: RequestError(f"the tokenizer cannot decode the answer ({why})"))


def _as_text(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Token ids of a text in which no added token counts, special or not: the tokenizer's own steps without them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # one that is written in Python
        return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    pieces = [text]
    if backend.pre_tokenizer is not None:
        pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    ids = [[token.id for token in backend.model.tokenize(piece)] for piece in pieces]
    control = {number for number, token in tokenizer.added_tokens_decoder.items() if _controls(token)}
    return tuple(
        token
        for piece, found in zip(pieces, ids, strict=True)
        for token in (found if control.isdisjoint(found) else _by_letter(backend.model, piece))
    )


def _by_letter(model: Any, piece: str) -> list[int]:
    """A piece whose text as a whole is a control token in the model's own vocabulary."""
    return [token.id for letter in piece for token in model.tokenize(letter)]


def _controls(token: Any) -> bool:
    """Whether an added token may mean something to the model: one that is flagged as special, or that has signs in it,
    such as <role>. Others are words or spaces that were added to the vocabulary."""
    return bool(token.content and (token.special or re.search(r"[^\w\s]", token.content)))


class _Named:
    """Control tokens that users wrote into their messages, kept apart from those that the chat template writes.

    Args:
        tokenizer: knows which tokens there are.
        texts: what users wrote.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        control = {token.content for token in tokenizer.added_tokens_decoder.values() if _controls(token)}
        self._control = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or r"(?!)")
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._normalizer = None if backend is None else backend.normalizer
        self.found = any(self._control.search(text) or self._appears(text) for text in texts)
        number = 0
        while any(self._mark(number) in text for text in texts):
            number += 1
        self._boundary = self._mark(number)

    def _appears(self, text: str) -> bool:
        """Whether the normalizer makes a control token of something else, such as another case or width of it."""
        if self._normalizer is None:
            return False
        with _encoding(text):
            normal = self._normalizer.normalize_str(text)
        return len(self._control.findall(normal)) > len(self._control.findall(text))

    @staticmethod
    def _mark(number: int) -> str:
        """Text that no template changes and hardly anybody writes."""
        return f"\ue000{number}\ue001"

    def hide(self, text: str) -> str:
        """The text with its control tokens marked; the whole of it where they appear only once it is normalized."""
        if not self.found:
            return text
        if self._appears(text):
            return f"{self._boundary}{text}{self._boundary}"
        return self._control.sub(lambda match: f"{self._boundary}{match[0]}{self._boundary}", text)

    def pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """A rendered text in pieces; True for those in which control tokens are text."""
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
