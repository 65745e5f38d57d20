"""A checkpoint's tokenizer: its files are checked before transformers and tokenizers read them, and what those raise
becomes an error of ours.

A tokenizer is data with effects: a normalizer or decoder that replaces a letter by a page, several times over, turns a
word into gigabytes, and the Rust code ends with a panic that is no `Exception`. Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlm._quoting import named, quoted, reason
from dlm.errors import CheckpointError, DLMError
from dlm.models.io.files import JSON_BYTES, MIB, check_folder, read_json

FILES = ("*.json", "*.txt", "*.model", "*.model.*", "*.tiktoken")
TEMPLATES = ("*.jinja", "chat_templates/*.jinja")

MAX_GROWTH = 64
"""Characters that normalizer or decoder may make of one."""

MAX_TEXT = 4096
"""Characters of a pattern, and of what is put before or behind words."""

MAX_ID = 1 << 24

_CLASS = re.compile(r"(?!Auto)\w{0,100}Token\w{0,100}")

_TOKEN_KEYS = frozenset({"__type", "id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"})

_TABLES = frozenset({"extra_special_tokens", "model_specific_special_tokens"})
"""Keys of tokenizer_config.json that hold tokens by name."""

_PROBE = "a" * 48 + " " + "1" * 48 + "\n  <" + "!" * 48 + "> Zoë's 数学\t" + " " * 48


@contextmanager
def guarded(wrap: Callable[[str], DLMError]) -> Iterator[None]:
    """Make an error of ours of what a tokenizer raises, Rust's panics included."""
    try:
        yield
    except DLMError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and tokenizers' own
        raise wrap(reason(error)) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a class that cannot be imported
            raise
        raise wrap(reason(error)) from None


def load_tokenizer(folder: Path) -> Any:
    """The transformers tokenizer of a folder; nothing is fetched and no code from the folder is run.

    Raises `CheckpointError`, which names the file and the key where one is at fault.
    """
    from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

    check_folder(folder, FILES, JSON_BYTES)
    check_folder(folder, TEMPLATES, MIB)
    if (folder / "tokenizer_config.json").exists():
        _check_settings(folder / "tokenizer_config.json")
    if (folder / "special_tokens_map.json").exists():
        _check_tokens(folder / "special_tokens_map.json", read_json(folder / "special_tokens_map.json"))
    if (folder / "tokenizer.json").exists():
        _check_pipeline(folder / "tokenizer.json")
    # Without a config transformers reads the model's own and warns that it does not know its type.
    options = {"local_files_only": True, "trust_remote_code": False, "config": PretrainedConfig()}
    with guarded(lambda why: CheckpointError(f"{folder}: no usable tokenizer ({why})")):
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TypeError(f"{type(tokenizer).__name__} is no tokenizer")
        ids = tokenizer(_PROBE)["input_ids"]
        text = tokenizer.decode(ids)
    if max(len(ids), len(text)) > MAX_GROWTH * len(_PROBE):
        raise CheckpointError(f"{folder}: the tokenizer makes {len(ids)} tokens of {len(_PROBE)} characters")
    return tokenizer


def _check_settings(path: Path) -> None:
    """What tokenizer_config.json may not say: transformers hands all of it to whatever class it names."""
    settings = read_json(path)
    name = settings.get("tokenizer_class")
    if name is not None and not (isinstance(name, str) and _CLASS.fullmatch(name)):
        raise CheckpointError(f"{path}: tokenizer_class is {quoted(name)}, which is no tokenizer")
    for key in ("init_inputs", "gguf_file", "tokenizer_object"):
        if settings.get(key):
            raise CheckpointError(f"{path}: {key} is {quoted(settings[key])}; leave it out")
    tokens = settings.get("added_tokens_decoder") or {}
    if not isinstance(tokens, dict) or not all(_is_token(number, token) for number, token in tokens.items()):
        raise CheckpointError(f"{path}: added_tokens_decoder is {quoted(tokens)}; ids and tokens are expected")
    given = {key: value for key, value in settings.items() if key.endswith(("_token", "_tokens"))}
    _check_tokens(path, given)
    _check_tokens(path, {key: value for key, value in settings.items() if _has_type(value)})


def _has_type(value: Any) -> bool:
    return isinstance(value, dict) and "__type" in value


def _check_tokens(path: Path, given: Mapping[str, Any]) -> None:
    """Refuse tokens with keys that the library does not know, whose names it prints as they are."""
    for key, value in given.items():
        tokens = list(value.values()) if isinstance(value, dict) and key in _TABLES else value
        for token in tokens if isinstance(tokens, list) else [tokens]:
            if isinstance(token, dict) and token.keys() - _TOKEN_KEYS:
                raise CheckpointError(f"{path}: {named(key)} has a token {quoted(token)}, which is none")


def _is_token(number: str, token: Any) -> bool:
    """Whether this is an id and a token of known keys."""
    known = isinstance(token, dict) and token.keys() <= _TOKEN_KEYS
    return known and number.isascii() and number.isdigit() and len(number) < 9 and int(number) < MAX_ID


def _check_pipeline(path: Path) -> None:
    """Refuse a tokenizer.json of which a short text could become a huge one."""
    pipeline = read_json(path)
    _check_tokens(path, {"added_tokens": pipeline.get("added_tokens")})
    for key in ("normalizer", "decoder"):
        if _growth(path, key, pipeline.get(key)) > MAX_GROWTH:
            raise CheckpointError(f"{path}: {key} makes more than {MAX_GROWTH} characters of one")
    model = pipeline.get("model")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if isinstance(model, dict) and len(str(model.get(key) or "")) > MAX_TEXT:
            raise CheckpointError(f"{path}: {key} of the model is {quoted(model[key])}")


def _growth(path: Path, key: str, step: Any) -> int:
    """Characters that a step, with the steps in it, makes of one."""
    if step is None:
        return 1
    if not isinstance(step, Mapping):
        raise CheckpointError(f"{path}: {key} is {quoted(step)}, not an object with a type")
    kind = step.get("type")
    if kind == "Precompiled":
        raise CheckpointError(f"{path}: {key} has a step of the type Precompiled, which is not supported")
    growth = 1
    if kind == "Sequence":
        steps = step.get(f"{key}s")
        if not isinstance(steps, list):
            raise CheckpointError(f"{path}: {key} is a Sequence of {quoted(steps)}, not a list")
        for each in steps:
            growth *= _growth(path, key, each)
            if growth > MAX_GROWTH:
                return growth
        return growth
    added = [step.get(name) for name in ("content", "prepend", "prefix", "suffix", "replacement")]
    for text in added:
        if isinstance(text, str) and len(text) > MAX_TEXT:
            raise CheckpointError(f"{path}: {named(kind)} in {key} adds {quoted(text)}")
    return max(1, len(added[0]) if isinstance(added[0], str) else 1)
