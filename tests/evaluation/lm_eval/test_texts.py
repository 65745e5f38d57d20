"""lm-eval's texts as token ids."""

from __future__ import annotations

import random

import pytest

from dlm.demo import CHECKPOINT
from dlm.errors import RequestError
from dlm.evaluation.lm_eval.texts import Texts
from dlm.text import TextCodec

BOS = 0


@pytest.fixture(scope="module", name="codec")
def demo_codec() -> TextCodec:
    return TextCodec.load(CHECKPOINT)


def test_a_pair_covers_the_whole_text(codec: TextCodec) -> None:
    texts, plain = Texts(codec, 99), codec.tokenizer
    for context, continuation in (("Sort 7 3 12.", " 3 7"), ("Sort 7 3 12. ", "3 7"), ("Sort 7 3 12.\n\n", "3 7")):
        given, scored = texts.pair(context, continuation)
        assert [*given, *scored] == plain(context + continuation)["input_ids"]
        assert list(given) == plain("Sort 7 3 12.")["input_ids"]


def test_an_empty_context_is_the_first_token(codec: TextCodec) -> None:
    texts = Texts(codec, 99)
    lead = codec.tokenizer.bos_token_id
    assert texts.lead == (lead,)
    assert texts.encode("") == (lead,)
    assert texts.pair("", "Sort") == ((lead,), tuple(codec.tokenizer("Sort")["input_ids"]))
    assert texts.pair("  ", "Sort") == ((lead,), tuple(codec.tokenizer("  Sort")["input_ids"]))
    assert texts.pair("", "<|startoftext|>Sort") == texts.pair("", "Sort")
    with pytest.raises(RequestError, match="adds no token"):
        texts.pair("Sort", "")
    with pytest.raises(RequestError, match="adds no token"):
        texts.pair("", "<|startoftext|>")


def test_windows_score_each_token_once_with_all_the_room_there_is(codec: TextCodec) -> None:
    chance = random.Random(4)
    for count in (0, 1, 2, 3, 8, 9, 10, 11, 40, 41, 57):
        text = " ".join(str(chance.randrange(1000)) for _ in range(count))
        ids = tuple(codec.tokenizer(text)["input_ids"])
        windows = Texts(codec, 10).windows(text)
        assert tuple(token for _, scored in windows for token in scored) == ids
        before: tuple[int, ...] = Texts(codec, 10).lead
        for index, (given, scored) in enumerate(windows):
            assert before[-len(given) :] == given
            assert len(given) + len(scored) == (10 if index else min(10, len(ids) + 1))
            before += scored


def test_the_chat_template_is_written_out(codec: TextCodec) -> None:
    texts, messages = Texts(codec, 99), [{"role": "user", "content": "Sort 7 3 12."}]
    rendered = texts.rendered(messages, add_generation_prompt=True)
    assert texts.encode(rendered) == codec.encode("Sort 7 3 12.")
    begun = [*messages, {"role": "assistant", "content": "3 7"}]
    assert texts.rendered(begun, add_generation_prompt=False) == rendered + "3 7"
    with pytest.raises(RequestError, match="no chat template"):
        Texts(TextCodec(codec.tokenizer, chat=False), 99).rendered(messages, add_generation_prompt=True)


class AddsAToken:
    """A tokenizer that puts a token before every text, unless it is told not to."""

    bos_token, bos_token_id, eos_token_id, chat_template = "<s>", 7, 1, None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [7] * text.startswith("<s>") + [100 + ord(one) for one in text.removeprefix("<s>")]
        return {"input_ids": [7, *ids] if add_special_tokens else ids}


def test_what_comes_before_every_text_comes_once() -> None:
    texts = Texts(TextCodec(AddsAToken()), 99)
    assert texts.encode("ab") == texts.encode("<s>ab") == (7, 197, 198)
    assert texts.pair("ab", "c") == ((7, 197, 198), (199,))
    assert texts.pair("", "c") == ((7,), (199,))
    assert texts.windows("ab") == [((7,), (197, 198))]
