"""lm-eval's requests answered over HTTP: the numbers of the model in process, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dlm import LLM
from dlm.demo import CHECKPOINT
from dlm.errors import ConfigError, RequestError, RunError
from dlm.evaluation.lm_eval.asking import Settings
from dlm.evaluation.lm_eval.local import Local
from dlm.evaluation.lm_eval.remote import RemoteServer
from dlm.text import TextCodec
from tests.evaluation.lm_eval.stand_in_lm_eval import ENDS, Asked
from tests.serving.server import Server, serving

KEY = "not-a-secret"
QUESTIONS = ("Sort 7 3 12.", "What is 3 + 4?", "Capital of France?", "Split 17 eggs into 2.")
ANSWERS = ("3 7 12", "7", "Paris", " 9 and 8", "<|eot_id|>", "ü")


@pytest.fixture(scope="module", name="server")
def with_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), "batch_size=16", DLM_API_KEY=KEY) as server:
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLM_API_KEY", KEY)


@pytest.fixture(scope="module", name="llm")
def demo() -> Iterator[LLM]:
    with LLM("demo", device="cpu") as llm:
        yield llm


def both(llm: LLM, server: Server, **arguments: Any) -> tuple[Asked, Asked]:
    """In process and over HTTP."""
    settings, rest = Settings.split(arguments)
    assert not rest
    remote = RemoteServer(f"{server.url}/v1/completions", TextCodec.load(CHECKPOINT), settings, num_concurrent=4)
    return Asked(Local(llm, settings), settings), Asked(remote, settings)


@pytest.mark.parametrize(
    "arguments",
    [
        {"mc_num": 16, "seed": 3},
        {"mc_num": 16, "seed": 4},
        {"scheme": "ar"},
        {"scheme": "block_causal", "check_greedy": False},
        {"scheme": "d1_onestep", "seed": 1, "check_greedy": False},
    ],
)
def test_likelihoods_are_equal(llm: LLM, server: Server, arguments: dict[str, Any]) -> None:
    here, there = both(llm, server, **arguments)
    pairs = [(here.ask(question), answer) for question in QUESTIONS for answer in ANSWERS]
    pairs += [
        (here.ask("Capital of France?") + "Capital:", " Paris"),
        ("", "3 7"),
        ("Sort", " 7"),
        ("Sort 7 3 12.", " <|startoftext|> 7"),
    ]
    found = there.score(pairs)
    assert found == here.score(pairs)
    assert any(greedy for _, greedy in found) == here.settings.check_greedy
    assert not all(greedy for _, greedy in found)
    assert there.cache_hook.told == [("loglikelihood", *each) for each in zip(pairs, found, strict=True)]


def test_128_draws_are_the_default_of_both(llm: LLM, server: Server) -> None:
    here, there = both(llm, server)
    pairs = [("Sort 7 3 12.", " 3 7 12")]
    assert there.score(pairs) == here.score(pairs)
    assert here.score(pairs) != both(llm, server, mc_num=127)[0].score(pairs)


def test_rolling_is_equal(llm: LLM, server: Server) -> None:
    here, there = both(llm, server, mc_num=2, check_greedy=False)
    texts = ("Sort 7 3 12.", "", "3 7 12 " * 500)
    assert len(here.texts.windows(texts[2])) > 1
    assert there.roll(*texts) == here.roll(*texts)


@pytest.mark.parametrize(
    "arguments",
    [
        {"algorithm": "dinfer_hierarchy", "gen_length": 32},
        {"steps": 32, "block_length": 16},
        {"algorithm": "basic", "remasking": "random", "seed": 8},
    ],
)
def test_answers_are_equal(llm: LLM, server: Server, arguments: dict[str, Any]) -> None:
    here, there = both(llm, server, **arguments)
    requests: list[tuple[str, dict[str, Any]]] = [(here.ask(question), ENDS) for question in QUESTIONS]
    requests += [(here.ask("Sort 7 3 12."), {"until": [" 12"], "max_gen_toks": 24})]
    requests += [(here.ask(QUESTIONS[3]), {"temperature": 2.0, "max_gen_toks": 16})] * 3
    requests += [("", ENDS), ("Sort 7 3 12. " * 200, ENDS)]
    found = there.generate(*requests)
    assert found == here.generate(*requests)
    assert found[4] == "Sorted: 3 7"
    assert len(set(found[5:8])) > 1


def test_what_a_server_refuses_is_an_error_that_names_it(llm: LLM, server: Server) -> None:
    _, there = both(llm, server)
    with pytest.raises(RunError, match=rf"{server.url}.*cannot run on a llada model"):
        there.generate(("Sort", {"algorithm": "sdar", "max_gen_toks": 8}))
    _, there = both(llm, server, mc_num=4000)
    with pytest.raises(RunError, match=r"dlm.mc_num=4000 must be 1..1024"):
        there.score([("Sort", " 7")] * 40)
    codec, settings = TextCodec.load(CHECKPOINT), Settings()
    with pytest.raises(ConfigError, match=r"model='llada'.* serves demo"):
        RemoteServer(server.url, codec, settings, model="llada")
    with pytest.raises(RunError, match=r"http://127.0.0.1:9"):
        RemoteServer("http://127.0.0.1:9", codec, settings, max_retries=0)
    with pytest.raises(RequestError, match="num_concurrent=0"):
        RemoteServer(server.url, codec, settings, num_concurrent=0)


def test_without_the_key_there_is_no_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLM_API_KEY")
    with pytest.raises(RunError, match="401"):
        RemoteServer(server.url, TextCodec.load(CHECKPOINT), Settings())
