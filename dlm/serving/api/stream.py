"""Incremental text that is final: nothing sent is ever revised."""

from __future__ import annotations

from collections.abc import Sequence

from dlm.text import TextCodec

BROKEN = "\N{REPLACEMENT CHARACTER}"


class SettledText:
    """The text of one sample as its blocks finish.

    Holds back incomplete UTF-8 characters and what may be the beginning of a stop string.

    Args:
        codec: detokenizes.
        stop: strings before which the text ends.
        limit: maximum number of tokens shown.
    """

    def __init__(self, codec: TextCodec, stop: Sequence[str], limit: int | None) -> None:
        self._codec, self._stop, self._limit = codec, tuple(stop), limit
        self.sent = ""

    def push(self, token_ids: Sequence[int]) -> str:
        """What can be sent now that the answer begins with `token_ids`."""
        text, _, stopped = self._codec.show(token_ids[: self._limit], self._stop)
        return self._advance(text if stopped else text[: len(text) - self._open(text)])

    def finish(self, text: str) -> str:
        """The rest of the complete answer `text`."""
        return self._advance(text)

    def _advance(self, text: str) -> str:
        if not text.startswith(self.sent):
            return ""
        piece, self.sent = text[len(self.sent) :], text
        return piece

    def _open(self, text: str) -> int:
        """Characters at the end that may still change."""
        open_end = len(text) - len(text.rstrip(BROKEN))
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(text)), open_end, -1):
                if text.endswith(stop[:length]):
                    open_end = length
                    break
        return open_end
