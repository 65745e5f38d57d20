"""`trace=html`: the page says what the step maps say."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from dlm.cli.command_line import compose_config
from dlm.config.checks import check_predict
from dlm.decoding.engines import BlockCausal, DualCache, Engine
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Request
from dlm.decoding.samplers import Threshold
from dlm.errors import ConfigError
from dlm.predict import run as predict
from dlm.report.assets import OWN, SHARED, joined
from dlm.report.trace import HtmlTrace, events_of, layout_of
from tests.running import TINY, rows_of


def decode(*overrides: str) -> int:
    """Run in this process."""
    return predict(compose_config("predict", overrides), overrides)


def told(page: Path) -> list[dict[str, Any]]:
    """The answers inside a page."""
    found = re.search(r'<script type="application/json" id="answers">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    answers: list[dict[str, Any]] = json.loads(found[1])
    return answers


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo with two samples a prompt, one of its prompts hostile and one empty."""
    folder = tmp_path_factory.mktemp("traced")
    prompts = ["Sort 7 3 12.", "</script><!-- <b>Capital of France?", "", "Split 17 eggs into 2."]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in prompts))
    data = ("data=jsonl", f"data.path={folder / 'prompts.jsonl'}")
    assert decode(*data, "trace=html", "trace.prompts=3", "generation.n=2", f"run_dir={folder / 'run'}") == 0
    return folder / "run"


def test_the_page_holds_the_first_prompts_with_all_their_samples(run_dir: Path) -> None:
    answers = told(run_dir / "trace.html")
    assert [(one["prompt"], one["algorithm"]) for one in answers] == [
        (prompt, f"dual_cache, threshold, sample {sample}")
        for prompt in ("Sort 7 3 12.", "</script><!-- <b>Capital of France?")
        for sample in (1, 2)
    ]
    assert "4 answers to the first 3 prompts of the run; 1 has no step map." in " ".join(
        (run_dir / "trace.html").read_text().split()
    )


def test_its_events_are_the_step_map_and_the_confidences(run_dir: Path) -> None:
    rows = [row for row in rows_of(run_dir / "predictions.jsonl") if "error" not in row]
    for row, answer in zip(rows, told(run_dir / "trace.html"), strict=False):
        start, *steps, end = answer["events"]
        assert (start["gen_length"], start["first_block"], start["block_length"]) == (64, 16, 16)
        assert (end["nfe"], end["tokens_per_forward"]) == (row["nfe"], len(row["token_ids"]) / row["nfe"])
        seen = {}
        for event in steps:
            for position, _, confidence in event["revealed"]:
                seen[position] = event["step"]
                assert confidence == pytest.approx(math.exp(row["logprobs"][position]), abs=1e-4)
                assert event["block"] == position // 16
        assert seen == {position: step for position, step in enumerate(row["step_map"]) if step > 0}
        assert "".join(text for event in steps for _, text, _ in event["revealed"])
        assert answer["text"] == row["text"]


def test_the_page_asks_for_nothing(run_dir: Path) -> None:
    text = (run_dir / "trace.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert not re.search(r"@import|url\(|^import |^export ", text, re.MULTILINE)
    assert text.count("</script>") == 3
    assert "<b>Capital" not in text


def test_a_run_without_a_trace_has_no_page(tmp_path: Path) -> None:
    assert decode(*TINY, "data=demo", "data.limit=1", f"run_dir={tmp_path / 'run'}") == 0
    assert not (tmp_path / "run" / "trace.html").exists()


def test_a_run_with_records_gets_its_page_later(tmp_path: Path) -> None:
    base = (*TINY, "data=demo", "data.limit=2", "generation.record=true", f"run_dir={tmp_path / 'run'}")
    assert decode(*base) == 0
    assert decode(*base, "trace=html") == 0
    assert len(told(tmp_path / "run" / "trace.html")) == 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["generation.record=false"], "generation.record=false: trace=html shows what record keeps"),
        (["trace.prompts=0"], "trace.prompts=0: must be at least 1"),
        (["trace.promts=3"], "did you mean trace.prompts?"),
    ],
)
def test_a_trace_that_cannot_be_had_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_predict(compose_config("predict", ["trace=html", *overrides]))
    assert said in str(raised.value)


def test_a_trace_records(tmp_path: Path) -> None:
    assert compose_config("predict").generation.record is False
    assert compose_config("predict", ["trace=html"]).generation.record is True


@pytest.mark.parametrize(
    ("engine", "params", "first"),
    [(DualCache(), {}, 8), (DualCache(), {"align_blocks": True}, 6), (BlockCausal(), {}, 6)],
)
def test_blocks_lie_where_the_decoder_lays_them(engine: Engine, params: dict[str, Any], first: int) -> None:
    chosen = SamplingParams(gen_length=30, block_length=8, **params)
    layout = layout_of(Request("x", tuple(range(10)), chosen, engine, Threshold(0.9)))
    assert (layout["first_block"], layout["block_length"]) == (first, 8)


def test_positions_never_reached_and_confidences_that_are_unknown() -> None:
    class Codec:
        def piece(self, token_id: int) -> str:
            return f"<{token_id}>"

    row = {
        "step_map": [2, 0, 1], "canvas_ids": [5, 9, 7], "logprobs": [None, None, 0.0], "token_ids": [5], "nfe": 3,
        "seconds": 0.0, "seed": 4,
    }  # fmt: skip
    codec: Any = Codec()
    _, *steps, end = events_of(row, 3, {"first_block": 2, "block_length": 1}, codec)
    assert [(event["step"], event["block"], event["revealed"]) for event in steps] == [
        (1, 1, [[2, "<7>", 1.0]]),
        (2, 0, [[0, "<5>", 0.0]]),
    ]
    assert end["tokens_per_second"] is None


def test_a_page_has_no_answer_where_nothing_could_be_decoded(tmp_path: Path) -> None:
    unused: Any = None
    page = tmp_path / "trace.html"
    HtmlTrace().write(page, [{"id": "a", "error": {}}], unused, unused)
    assert told(page) == []
    assert "0 answers to the first 1 prompt of the run; 1 has no step map." in " ".join(page.read_text().split())


def test_modules_are_joined_in_the_order_of_their_imports() -> None:
    names = ("dom.js", "tokens.js", "run.js", "canvas.js", "player.js", "stage.js", "conversation.js", "trace.js")
    before: set[str] = set()
    declared: list[str] = []
    for name in names:
        text = ((OWN if name == "trace.js" else SHARED) / name).read_text()
        assert set(re.findall(r'from "\./([\w.]+)"', text)) <= before
        declared += re.findall(r"^(?:export )?(?:const|let|class|function) (\w+)", text, re.MULTILINE)
        before.add(name)
    assert len(declared) == len(set(declared))
    assert not re.search(r"^(import|export)\b", joined(*names), re.MULTILINE)
