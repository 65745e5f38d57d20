"""From lm-eval's texts to token ids: contexts, continuations, windows of long texts. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence

from dlm.errors import CheckpointError, RequestError
from dlm.text import TextCodec

TokenIds = tuple[int, ...]
Pair = tuple[TokenIds, TokenIds]
"""What is given and what is scored, neither of them empty."""


class Texts:
    """A checkpoint's tokenizer as lm-eval uses one.

    Special tokens that a text names are those tokens, since contexts come with the chat template written out.

    Args:
        codec: of the checkpoint.
        longest: tokens of a pair at most.

    Raises:
        CheckpointError: the tokenizer has neither a first nor an end token, so that nothing stands before a text.
    """

    def __init__(self, codec: TextCodec, longest: int) -> None:
        tokenizer = codec.tokenizer
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if first is None:
            raise CheckpointError("the tokenizer names neither bos_token nor eos_token; lm-eval's tasks need one")
        self.codec, self.tokenizer, self.longest = codec, tokenizer, longest
        self.lead: TokenIds = (int(first),)

    def encode(self, context: str) -> TokenIds:
        """Token ids of a context; what the tokenizer puts before every text is there once, also where the chat template
        has written it. An empty one is the first token, or the end token where there is none."""
        bos = self.tokenizer.bos_token
        ids = self._ids(context, special=not (bos and context.startswith(bos)))
        return ids or self.lead

    def pair(self, context: str, continuation: str) -> Pair:
        """What lm-eval's other models make of both: spaces at the end of the context belong to the continuation, whose
        tokens are those of the whole text that the context's do not cover.

        Raises:
            RequestError: no token is left to be scored.
        """
        kept = context.rstrip()
        if kept:
            given = self.encode(kept)
            pair = given, self.encode(context + continuation)[len(given) :]
        else:
            ids = self._ids(context + continuation, special=False)
            pair = self.lead, ids[1:] if ids[:1] == self.lead else ids
        if not pair[1]:
            raise RequestError(
                f"the continuation {continuation!r:.80} adds no token to the context that ends with {kept[-40:]!r}"
            )
        return pair

    def windows(self, text: str) -> list[Pair]:
        """A text cut so that each token is scored once, with one token before each window and before the last one as
        many as there is room for; none for an empty text. As lm-eval's rolling windows."""
        ids, size = self._ids(text, special=False), self.longest - 1
        found = [(self.lead, ids[:size])] if ids else []
        for start in range(size, len(ids), size):
            stop = min(start + size, len(ids))
            found.append((ids[stop - self.longest : start], ids[start:stop]))
        return found

    def rendered(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """A conversation in the checkpoint's chat template.

        Raises:
            RequestError: there is no template, or it refuses the messages.
        """
        if not self.codec.chat:
            raise RequestError("--apply_chat_template: the tokenizer has no chat template; leave it out")
        return self.codec.render(
            messages, add_generation_prompt=add_generation_prompt, continue_final_message=not add_generation_prompt
        )

    def _ids(self, text: str, *, special: bool) -> TokenIds:
        return tuple(self.tokenizer(text, add_special_tokens=special)["input_ids"])
