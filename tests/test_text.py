"""Text to tokens and back, with the demo's tokenizer."""

from __future__ import annotations

import pytest

from dlm.demo import CHECKPOINT
from dlm.errors import CheckpointError, RequestError
from dlm.text import TextCodec, first_stop


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec.load(CHECKPOINT, chat=False)


@pytest.mark.parametrize("text", ["How many?", "Zoë's ducks", "  spaces \n\n and lines", "数学 🦆"])
def test_text_round_trips(codec: TextCodec, text: str) -> None:
    ids = codec.encode(text)
    assert all(type(token) is int for token in ids)
    assert codec.decode(ids) == text


def test_the_chat_template_wraps_text_and_messages_alike() -> None:
    chat = TextCodec.load(CHECKPOINT)
    assert chat.chat
    assert chat.encode("hello") == chat.encode([{"role": "user", "content": "hello"}])
    shown = chat.tokenizer.decode(chat.encode("hello"))
    assert shown.startswith("<|startoftext|><|start_header_id|>user<|end_header_id|>")
    assert shown.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")


@pytest.mark.parametrize("half", ["\ud800", "a\udfffb", "\udc00\ud800", "<|startoftext|>\ud83d"])
def test_half_of_a_surrogate_pair_is_a_request_error_wherever_it_is(codec: TextCodec, half: str) -> None:
    chat = TextCodec.load(CHECKPOINT)
    message = {"role": "user", "content": half}
    for encode, text in (
        (codec.encode, half),
        (codec.encode_literally, half),
        (codec.encode_continuation, half),
        (chat.encode, half),
        (chat.encode, [message]),
    ):
        with pytest.raises(RequestError, match=r"half of a surrogate pair \(U\+D[89A-F]"):
            encode(text)  # type: ignore[operator]  # each takes its own kind
    assert codec.decode(codec.encode("\U0001f986")) == "\U0001f986"


def test_messages_without_a_template_are_a_request_error(codec: TextCodec) -> None:
    with pytest.raises(RequestError, match="the chat template is off"):
        codec.encode([{"role": "user", "content": "x"}])


def test_a_template_that_is_not_there_is_a_checkpoint_error(codec: TextCodec) -> None:
    class Bare:
        chat_template = None

    with pytest.raises(CheckpointError, match=r"data\.chat_template=false"):
        TextCodec(Bare(), chat=True)
    assert not TextCodec(Bare()).chat


def test_a_folder_without_a_tokenizer_is_a_checkpoint_error(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        TextCodec.load(tmp_path_factory.mktemp("empty"))


def test_stop_strings_are_found_across_tokens(codec: TextCodec) -> None:
    check = codec.stop_check(["ducks lay", "\n\n"])
    assert check is not None
    ids = codec.encode("the ducks lay eggs")
    assert check(ids)
    assert not check(ids[:2])
    assert codec.stop_check([]) is None


def test_text_and_tokens_end_before_the_earliest_stop_string(codec: TextCodec) -> None:
    assert first_stop("abcdef", ["e", "cd"]) == 2
    tokens = codec.encode("Sum: 12 eggs and 3 keys")
    text, kept, stopped = codec.show(tokens, ["keys", " and"])
    assert (text, stopped) == ("Sum: 12 eggs", True)
    assert codec.decode(kept).startswith(text)
    assert not codec.decode(kept[:-1]).startswith(text)
    assert codec.show(tokens, ["Sum"]) == ("", [], True)
    for stop in ([], ["nowhere"]):
        assert codec.show(tokens, stop) == ("Sum: 12 eggs and 3 keys", list(tokens), False)


@pytest.mark.parametrize("chat", [True, False])
def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(chat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = TextCodec.load(CHECKPOINT, chat)
    longest = max(codec.tokenizer.get_vocab(), key=len)
    monkeypatch.setattr(codec, "_ids", None)  # nothing is tokenized here
    for content in (longest * 8, [{"role": "user", "content": longest * 4}] * 2):
        codec.check_fits(content, 8)
        with pytest.raises(RequestError, match=f"has {len(longest) * 8} characters, more than the 7 tokens of this"):
            codec.check_fits(content, 7)
