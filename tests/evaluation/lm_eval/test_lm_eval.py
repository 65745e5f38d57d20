"""lm-eval's requests answered in process: the decoder's answers, and the library's likelihoods."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dlm import LLM, SamplingParams
from dlm.errors import ConfigError, RequestError, RunError
from dlm.evaluation.lm_eval.answering import Answering
from dlm.evaluation.lm_eval.asking import Settings
from dlm.evaluation.lm_eval.local import Local
from dlm.likelihood import Ar, LladaMC
from tests.evaluation.lm_eval.stand_in_lm_eval import ENDS, Asked, Hook
from tests.likelihood.models import naive

QUESTIONS = ("Sort 7 3 12.", "What is 3 + 4?", "Capital of France?", "Split 17 eggs into 2.")
TEXTS = ("", "3", "Sort 7 3 12. " * 3, "Split 17 eggs into 2. " * 9)


@pytest.fixture(scope="module", name="llm")
def demo() -> Iterator[LLM]:
    with LLM("demo", device="cpu") as llm:
        yield llm


def asked(llm: LLM, **arguments: Any) -> Asked:
    settings, rest = Settings.split(arguments)
    assert not rest
    return Asked(Local(llm, settings), settings)


def test_answers_are_those_of_the_library(llm: LLM) -> None:
    model = asked(llm, algorithm="dual_cache", threshold=0.9, gen_length=32)
    params = SamplingParams(algorithm="dual_cache", threshold=0.9, gen_length=32, temperature=0.0, max_tokens=24)
    wanted = [item["text"] for item in llm.generate(QUESTIONS, params, use_tqdm=False)]
    assert model.generate(*((model.ask(one), ENDS) for one in QUESTIONS)) == wanted
    assert wanted[0] == "Sorted: 3 7 12"


def test_each_request_has_its_own_wishes(llm: LLM) -> None:
    model, question = asked(llm, gen_length=32), "Sort 7 3 12."
    whole, cut, short = model.generate(
        (model.ask(question), ENDS),
        (model.ask(question), {"until": [" 12"], "max_gen_toks": 24}),
        (model.ask(question), {"max_gen_toks": 1}),
    )
    assert (whole, cut) == ("Sorted: 3 7 12", "Sorted: 3 7")
    assert whole.startswith(short)
    assert len(short) < len(whole)


def test_repeats_are_samples_and_equal_seeds_give_equal_answers(llm: LLM) -> None:
    hot = {"temperature": 2.0, "do_sample": True, "max_gen_toks": 16, "algorithm": "ar"}
    model = asked(llm, seed=5)
    requests = [(model.ask(question), hot) for question in reversed(QUESTIONS[-2:])] * 4
    answers = model.generate(*requests)
    assert len({*answers[::2]}) > 1
    assert asked(llm, seed=5).generate(*reversed(requests[:2]), *requests[:6]) == answers[1::-1] + answers[2:]
    assert asked(llm, seed=6).generate(*requests) != answers


def test_likelihoods_are_those_of_the_library(llm: LLM) -> None:
    model = asked(llm, seed=3)
    pairs = [(model.ask(question), answer) for question in QUESTIONS for answer in ("3 7 12", "7", "Paris")]
    tokens = [model.texts.pair(*pair) for pair in pairs]
    for name, scheme in (("llada_mc", LladaMC(128)), ("ar", Ar())):
        wanted = model.backend.likelihood.score(*zip(*tokens, strict=True), scheme, seed=3).mean.tolist()  # type: ignore[attr-defined]  # `Local`'s
        assert [mean for mean, _ in asked(llm, seed=3, scheme=name).score(pairs)] == wanted


def test_a_single_token_takes_one_draw_and_is_exact(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    context = (278, 4, 17)
    local = Local(llm, Settings(check_greedy=False))
    rows: list[int] = []
    forward = local.likelihood.given._hidden

    def counting(batch: Any) -> torch.Tensor:
        rows.append(len(batch.token_ids))
        return forward(batch)

    monkeypatch.setattr(local.likelihood.given, "_hidden", counting)
    [(one, _)] = local.score([(context, (99,))], progress=False)
    assert rows == [len(context) + 1]
    list(local.score([(context, (99, 5))], progress=False))
    assert sum(rows[1:]) == 128 * (len(context) + 2)
    [(chain, _)] = Local(llm, Settings("ar")).score([(context, (99,))], progress=False)
    assert one == chain


def decoded_greedily(llm: LLM, context: tuple[int, ...], length: int) -> tuple[int, ...]:
    """LLaDA's evaluation program: the most confident of the masks becomes its most probable token, one a forward."""
    mask = llm.config.special.mask_id
    canvas = [*context, *[mask] * length]
    for _ in range(length):
        with torch.no_grad():
            logprobs = naive(llm.checkpoint, canvas)
        logprobs[:, mask] = -torch.inf
        masked = [place for place, token in enumerate(canvas) if token == mask]
        best = max(masked, key=lambda place: float(logprobs[place].max()))
        canvas[best] = int(logprobs[best].argmax())
    return tuple(canvas[len(context) :])


def test_greedy_is_what_lladas_evaluation_program_decodes(llm: LLM) -> None:
    local, pairs, wanted = Local(llm, Settings(mc_num=1)), [], []
    for number, length in enumerate((1, 2, 3, 5, 8)):
        context = tuple(llm.codec.encode(QUESTIONS[number % 4]))
        greedy = decoded_greedily(llm, context, length)
        other = (*greedy[:-1], greedy[-1] ^ 1)
        ends = bool(set(greedy) & set(llm.config.special.end_ids))
        pairs += [(context, greedy), (context, other)]
        wanted += [not ends, False]
    assert [greedy for _, greedy in local.score(pairs, progress=False)] == wanted
    assert wanted.count(True) >= 2
    silent = Local(llm, Settings(mc_num=1, check_greedy=False))
    assert not any(greedy for _, greedy in silent.score(pairs, progress=False))


def test_greedy_of_a_chain_is_each_term_s_best_token(llm: LLM) -> None:
    context, chosen = tuple(llm.codec.encode("Sort 7 3 12.")), []
    for index in range(3):
        with torch.no_grad():
            logprobs = naive(llm.checkpoint, [*context, *chosen, *[llm.config.special.mask_id] * (3 - index)])
        chosen.append(int(logprobs[len(context) + index].argmax()))
    pairs = [(context, tuple(chosen)), (context, (*chosen[:2], chosen[2] ^ 1))]
    assert [greedy for _, greedy in Local(llm, Settings("ar")).score(pairs, progress=False)] == [True, False]


def test_rolling_sums_windows(llm: LLM) -> None:
    model = asked(llm, mc_num=2, check_greedy=False)
    model.texts.longest = 12
    found = model.roll(*TEXTS)
    assert found[0] == 0.0
    for text, total in zip(TEXTS[1:], found[1:], strict=True):
        windows = model.texts.windows(text)
        assert total == sum(mean for mean, _ in model.backend.score(windows, progress=False))
    assert len(model.texts.windows(TEXTS[3])) > 4


def test_the_hook_is_told_every_answer(llm: LLM) -> None:
    model = asked(llm, mc_num=1, check_greedy=False, gen_length=16)
    texts = model.generate(("Sort", ENDS), ("Sort", ENDS), ("Split", {}))
    scores, [total] = model.score([("Sort", " 7"), ("Sort", " 7 3")]), model.roll("Sort 7 3")
    hook = model.cache_hook
    assert isinstance(hook, Hook)
    assert sorted(map(repr, hook.told)) == sorted(
        map(
            repr,
            [
                ("generate_until", ("Sort", ENDS), texts[0]),
                ("generate_until", ("Sort", ENDS), texts[1]),
                ("generate_until", ("Split", {}), texts[2]),
                ("loglikelihood", ("Sort", " 7"), scores[0]),
                ("loglikelihood", ("Sort", " 7 3"), scores[1]),
                ("loglikelihood_rolling", ("Sort 7 3",), total),
            ],
        )
    )


def test_what_is_too_long_is_cut_on_the_left_with_a_warning(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    model = asked(llm, mc_num=1, check_greedy=False, gen_length=1000)
    long = "3 7 12 " * 400
    ids = model.texts.encode(long)
    with caplog.at_level(logging.WARNING):
        [text] = model.generate((long, ENDS))
        [(mean, _)] = model.score([(long, "7 5")])
    assert "cut on the left to 24" in caplog.text
    [item] = llm.generate(
        [list(ids[-24:])], SamplingParams(gen_length=1000, temperature=0.0, max_tokens=24, stop="\n\n"), use_tqdm=False
    )
    assert text == item["text"]
    context, continuation = model.texts.pair(long, "7 5")
    kept = context[-(1023 - len(continuation)) :]
    assert model.backend.likelihood.score([kept], [continuation], LladaMC(1)).mean.item() == mean  # type: ignore[attr-defined]  # `Local`'s


def test_what_cannot_be_answered_is_an_error(llm: LLM) -> None:
    model = asked(llm, mc_num=1)
    with pytest.raises(RequestError, match="gen_length=1024 leaves no position for a prompt"):
        model.generate(("Sort", {"max_gen_toks": 1024}))
    with pytest.raises(RequestError, match=r"a continuation of \d+ tokens"):
        model.score([("Sort", " 3 7 12" * 500)])
    with pytest.raises(RunError, match="algorithm='sdar' cannot run on a llada model"):
        model.generate(("Sort", {"algorithm": "sdar"}))
    with pytest.raises(RequestError, match="mask id"):
        model.score([("Sort", "<|mdm_mask|>")])
    with pytest.raises(RequestError, match=r"cfg_scale=0.5: likelihoods are without guidance"):
        asked(llm, cfg_scale=0.5).score([("Sort", " 7")])
    with pytest.raises(ConfigError, match="templates have no names here"):
        model.chat_template("rag")


def test_what_lm_eval_records_of_a_model(llm: LLM) -> None:
    model = asked(llm)
    assert model.get_model_info() == {"dlm": {"scheme": "llada_mc", "seed": 0, "check_greedy": True, "mc_num": 128}}
    assert asked(llm, scheme="ar").get_model_info()["dlm"]["mc_num"] is None
    assert model.chat_template(True) == llm.tokenizer.chat_template
    assert model.chat_template() is None
    assert (model.tokenizer_name, model.max_length, model.eot_token_id) == ("demo", 1023, 1)
    assert isinstance(model, Answering)
