"""lm-eval itself, from its command line: our model here and at a server, and its own API model at that server."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dlm import LLM
from dlm.demo import CHECKPOINT
from dlm.evaluation.lm_eval.asking import Settings
from dlm.evaluation.lm_eval.local import Local
from dlm.evaluation.lm_eval.texts import Texts
from dlm.text import TextCodec
from tests.running import python, run
from tests.serving.server import Server, serving

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval: pip install 'dlm[lm-eval]'"),
    pytest.mark.slow,
]

ROWS = [
    {"question": "Sort 7 3 12.", "answer": "Sorted: 3 7 12", "choices": ["7", "Sorted: 3 7 12", "Sorted: 12 7 3"]},
    {"question": "Capital of France?", "answer": "Capital: Paris", "choices": ["Capital: Rome", "Capital: Paris"]},
    {
        "question": "Capital of Spain?",
        "answer": "Capital: Madrid",
        "choices": ["Capital: Rome", "Capital: Madrid"],
    },
]
COMMON = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{target}"
metric_list: [{metrics}]
metadata: {{version: 1.0}}
"""
TASKS = {
    "dlm_answer": ("generate_until", "{{question}}", "{{answer}}", "{metric: exact_match, aggregation: mean}"),
    "dlm_choice": ("multiple_choice", "{{question}}", "1", "{metric: acc, aggregation: mean}"),
    "dlm_target": ("loglikelihood", "{{question}}", " {{answer}}", "{metric: perplexity, aggregation: perplexity}"),
    "dlm_whole": (
        "loglikelihood_rolling", "", "{{question}}", "{metric: byte_perplexity, aggregation: weighted_perplexity}",
    ),
}  # fmt: skip
MORE = {
    "dlm_answer": 'generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 24, do_sample: false}\n',
    "dlm_choice": 'doc_to_choice: "{{choices}}"\n',
}


@pytest.fixture(scope="module", name="server")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), "batch_size=16") as server:
        yield server


@pytest.fixture(scope="module", name="tasks")
def task_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, (kind, text, target, metrics) in TASKS.items():
        common = COMMON.format(name=name, rows=rows, kind=kind, text=text, target=target, metrics=metrics)
        (folder / f"{name}.yaml").write_text(common + MORE.get(name, ""))
    return folder


def evaluated(
    tasks: Path, module: str, model: str, arguments: str, chosen: str, *options: str
) -> dict[str, dict[int, Any]]:
    """lm-eval's answers by task and row, and what it found of them by task under -1."""
    output = tasks / f"results-{abs(hash((module, model, arguments, options)))}"
    command = python(
        module, "--model", model, "--model_args", arguments, "--tasks", chosen, "--include_path", str(tasks),
        "--output_path", str(output), "--log_samples", *options,
    )  # fmt: skip
    done = run(command, tasks, HF_HOME=str(tasks / "home"), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, dict[int, Any]] = {}
    for path in output.rglob("samples_*.jsonl"):
        name = next(task for task in TASKS if f"samples_{task}_" in path.name)
        found[name] = {row["doc_id"]: row["resps"] for row in map(json.loads, path.read_text().splitlines())}
    [results] = [json.loads(path.read_text()) for path in output.rglob("results_*.json")]
    for name, metrics in results["results"].items():
        found[name][-1] = {key: value for key, value in metrics.items() if key.split(",")[0] in TASKS[name][3]}
    assert set(found) == set(chosen.split(","))
    return found


def test_in_process_and_over_http_give_equal_numbers(server: Server, tasks: Path) -> None:
    ours, chosen = "gen_length=32,mc_num=8,seed=3,algorithm=dual_cache,threshold=0.9", ",".join(TASKS)
    options = ("--apply_chat_template", "--num_fewshot", "0")
    here = evaluated(tasks, "dlm.lm_eval", "dlm", f"model=demo,{ours}", chosen, "--batch_size", "auto", *options)
    there = evaluated(tasks, "dlm.lm_eval", "dlm-http", f"base_url={server.url},model=demo,{ours}", chosen, *options)
    assert here == there
    print(json.dumps(here, indent=1))
    assert here["dlm_answer"][-1] == {"exact_match,none": 1.0}


def test_its_own_api_model_unchanged_gives_the_chain(server: Server, tasks: Path) -> None:
    chosen = "dlm_choice,dlm_target,dlm_whole"
    here = evaluated(tasks, "dlm.lm_eval", "dlm", "model=demo,scheme=ar", chosen)
    arguments = f"model=demo,base_url={server.url}/v1/completions,tokenizer={CHECKPOINT},max_length=1024"
    theirs = evaluated(tasks, "lm_eval", "local-completions", arguments, chosen)
    assert {name: sorted(rows) for name, rows in theirs.items()} == {name: sorted(rows) for name, rows in here.items()}
    for name, rows in theirs.items():
        for number, row in rows.items():
            assert numbers(row) == pytest.approx(numbers(here[name][number]), rel=1e-12), (name, number)


def numbers(value: Any) -> list[float]:
    """All numbers in what lm-eval wrote, which are texts in part; True and False too."""
    if isinstance(value, dict):
        return [one for each in value.values() for one in numbers(each)]
    if isinstance(value, list):
        return [one for each in value for one in numbers(each)]
    words = {"True": 1.0, "False": 0.0}
    return [words[value] if value in words else float(value)] if value != "N/A" else []


def test_what_it_reads_from_an_answer_is_the_chain(server: Server) -> None:
    """Its static function, on answers as the server sends them; the answer's last token is one that was generated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's own imports
        from lm_eval.models.openai_completions import LocalCompletionsAPI
    with LLM("demo", device="cpu") as llm:
        local, texts = Local(llm, Settings("ar")), Texts(llm.codec, 1023)
        pairs = [texts.pair(row["question"], f" {choice}") for row in ROWS for choice in row["choices"]]
        wanted = list(local.score(pairs, progress=False))
    body = {"model": "demo", "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    prompt = [[*context, *continuation] for context, continuation in pairs]
    answer = httpx.post(f"{server.url}/v1/completions", json={**body, "prompt": prompt}, timeout=60).json()
    lengths = [len(context) for context, _ in pairs]
    found = LocalCompletionsAPI.parse_logprobs(answer, tokens=prompt, ctxlens=lengths)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], rel=1e-12)


def test_windows_are_its_own() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's own imports
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    texts = Texts(TextCodec.load(CHECKPOINT), 12)
    for count in range(1, 40):
        text = "3 7 " * count
        ids = texts.tokenizer(text, add_special_tokens=False)["input_ids"]
        theirs = get_rolling_token_windows(ids, texts.lead[0], max_seq_len=11, context_len=1)
        ours = [tuple(map(list, window)) for window in texts.windows(text)]
        assert ours == [make_disjoint_window(window) for window in theirs]
