"""The models under lm-eval's base class, with a stand-in for the package: what is registered, and how lm-eval makes
them."""

from __future__ import annotations

import importlib
import logging
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest

import dlm.lm_eval
from dlm.errors import CheckpointError, ConfigError, RequestError
from tests.evaluation.lm_eval.stand_in_lm_eval import ENDS, Hook, Instance

ALWAYS = {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}
"""What lm-eval's command line gives every model."""
MODULE = "dlm.evaluation.lm_eval.models"


class LM:
    """lm-eval's base class, as far as models see it."""

    def __init__(self) -> None:
        self.cache_hook = Hook()

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any]) -> Self:
        return cls(**arg_dict, **{name: value for name, value in additional_config.items() if value is not None})


@pytest.fixture(name="registry")
def stand_in_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What is registered with the stand-in, by name."""
    registry: dict[str, Any] = {}

    def register_model(name: str) -> Any:
        def keep(kind: type[Any]) -> type[Any]:
            assert issubclass(kind, LM)
            registry[name] = kind
            return kind

        return keep

    contents: dict[str, dict[str, Any]] = {
        "lm_eval": {},
        "lm_eval.api": {},
        "lm_eval.api.model": {"LM": LM},
        "lm_eval.api.registry": {"register_model": register_model},
        "lm_eval.models": {},
        "lm_eval.__main__": {"cli_evaluate": lambda: registry.setdefault("began with", sorted(registry))},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    real = sys.modules.pop(MODULE, None)
    yield registry
    sys.modules.pop(MODULE, None)
    if real is not None:
        sys.modules[MODULE] = real


def test_the_command_line_registers_both_before_lm_eval_begins(registry: dict[str, Any]) -> None:
    dlm.lm_eval.main()
    assert registry.pop("began with") == ["dlm", "dlm-http"]
    points = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["entry-points"]
    assert {name: f"{kind.__module__}:{kind.__name__}" for name, kind in registry.items()} == points["lm_eval.models"]


def test_without_lm_eval_the_command_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(SystemExit, match=r"pip install 'dlm\[lm-eval\]'"):
        dlm.lm_eval.main()


def made(registry: dict[str, Any], name: str, arguments: dict[str, Any], **others: Any) -> Any:
    importlib.import_module(MODULE).register()
    return registry[name].create_from_arg_obj(arguments, {**ALWAYS, **others})


def test_lm_eval_s_own_arguments(registry: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """A model that lm-eval made answers its requests on a machine without a GPU."""
    with caplog.at_level(logging.WARNING):
        model = made(registry, "dlm", {"model": "demo", "gen_length": 32, "mc_num": 2, "max_model_len": 256})
    assert "there is no GPU" in caplog.text
    assert "one prompt is decoded at a time" in caplog.text
    assert (model.backend.llm.options.max_num_seqs, model.max_length, model.tokenizer_name) == (1, 255, "demo")
    context = model.apply_chat_template([{"role": "user", "content": "Sort 7 3 12."}])
    assert model.generate_until([Instance("generate_until", (context, ENDS))]) == ["Sorted: 3 7 12"]
    context = model.apply_chat_template([{"role": "user", "content": "Capital of France?"}]) + "Capital:"
    pairs = [Instance("loglikelihood", (context, answer)) for answer in (" Paris", " Rome")]
    (right, greedy), (wrong, other) = model.loglikelihood(pairs)
    assert 0 > right > wrong
    assert (greedy, other) == (True, False)


@pytest.mark.parametrize(
    ("size", "most", "wanted"), [("auto", None, 16), ("auto:4", 5, 5), (7, None, 7), ("3", None, 3)]
)
def test_the_batch_size_is_how_many_are_decoded_at_once(
    registry: dict[str, Any], size: Any, most: int | None, wanted: int
) -> None:
    model = made(registry, "dlm", {"model": "demo"}, batch_size=size, max_batch_size=most)
    assert model.backend.llm.options.max_num_seqs == wanted


def test_arguments_that_nobody_knows_are_refused_by_name(
    registry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TypeError, match="pretrained"):
        made(registry, "dlm", {"model": "demo", "pretrained": "demo"})
    with pytest.raises(RequestError, match="threshold=7"):
        made(registry, "dlm", {"model": "demo", "threshold": 7})
    with pytest.raises(ConfigError, match="trust_remote_code"):
        made(registry, "dlm", {"model": "demo", "trust_remote_code": True})
    with pytest.raises(ConfigError, match="max_batch_size=4 goes with batch_size=auto alone"):
        made(registry, "dlm", {"model": "demo"}, batch_size=3, max_batch_size=4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="each would do every request"):
        made(registry, "dlm", {"model": "demo"})


def test_what_a_model_at_a_server_needs(registry: dict[str, Any]) -> None:
    url = {"base_url": "http://127.0.0.1:9"}
    with pytest.raises(ConfigError, match="set num_concurrent"):
        made(registry, "dlm-http", url, batch_size=8)
    with pytest.raises(ConfigError, match="tokenizer is not set"):
        made(registry, "dlm-http", url)
    with pytest.raises(CheckpointError, match="tokenizer='llada-8b' is neither a folder"):
        made(registry, "dlm-http", {**url, "model": "llada-8b"})
    with pytest.raises(CheckpointError, match=r"^revision is not set for the hub id 'owner/name'"):
        made(registry, "dlm-http", {**url, "tokenizer": "owner/name"})
    with pytest.raises(TypeError, match="tokenized_requests"):
        made(registry, "dlm-http", {**url, "model": "demo", "tokenized_requests": True})
