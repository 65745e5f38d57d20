"""The demo's tasks, its test set and its tokenizer."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dlm.demo import CHECKPOINT, PROMPTS
from dlm.demo.tasks import FAMILIES, TEST_PER_FAMILY, check, fresh_examples, held_out, training_examples, write_prompts
from dlm.errors import ConfigError


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_a_checker_accepts_generated_answers_and_rejects_corrupted_ones(family):
    rng = random.Random(7)
    for _ in range(200):
        example = family.example(rng)
        answer = example.answer
        assert check(family.name, example.question, f"\n{answer} ")
        place = rng.randrange(len(answer))
        for broken in ("", answer + answer[-1], answer[:-1], answer[:place] + "#" + answer[place + 1 :]):
            assert not check(family.name, example.question, broken), (example.question, broken)


def test_any_valid_answer_counts():
    assert check("split", "Split 17 eggs into 2.", "Parts: 1 + 16")
    assert check("split", "Split 17 eggs into 2.", "Parts: 10 + 7")
    assert not check("split", "Split 17 eggs into 2.", "Parts: 10 + 8")
    assert not check("split", "Split 17 eggs into 2.", "Parts: 17 + 0")
    assert not check("split", "Split 17 eggs into 2.", "Parts: 7 + 5 + 5")
    assert check("pick", "Name one animal 3 times.", "Words: fox fox fox")
    assert check("pick", "Name one animal 3 times.", "Words: cat cat cat")
    assert not check("pick", "Name one animal 3 times.", "Words: cat cat fox")
    assert not check("pick", "Name one animal 3 times.", "Words: cat cat")
    assert not check("pick", "Name one animal 3 times.", "Words: tea tea tea")
    puzzle = "Fill the zeros:\n1 0 0 0\n0 0 0 0\n0 0 0 0\n0 0 0 1"
    assert check("sudoku", puzzle, "Grid:\n1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1")
    assert check("sudoku", puzzle, "Grid:\n1 2 3 4\n3 4 1 2\n4 1 2 3\n2 3 4 1")
    assert not check("sudoku", puzzle, "Grid:\n1 2 3 4\n2 3 4 1\n3 4 1 2\n4 1 2 1")
    assert not check("sudoku", puzzle, "Grid:\n1 2 3 4\n3 4 1 2\n2 3 4 1\n4 1 2 3")


def test_an_unknown_family_is_an_error():
    with pytest.raises(ConfigError, match="choose one of split"):
        check("nonsense", "", "")


def test_only_families_marked_so_leave_a_choice():
    for family in FAMILIES.values():
        answers: dict[str, set[str]] = {}
        rng = random.Random(3)
        for _ in range(20_000):
            example = family.example(rng)
            answers.setdefault(example.question, set()).add(example.answer)
        assert any(len(choices) > 1 for choices in answers.values()) <= family.many_valid


def test_the_bundled_prompts_are_the_test_set(tmp_path):
    write_prompts(tmp_path / "prompts.jsonl")
    assert PROMPTS.read_bytes() == (tmp_path / "prompts.jsonl").read_bytes()
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) >= 320
    counts = Counter(row["family"] for row in rows)
    memorised = {family.name for family in FAMILIES.values() if family.memorised}
    assert {name: counts[name] for name in memorised} == dict.fromkeys(memorised, TEST_PER_FAMILY // 2)
    assert sum(counts[name] for name in FAMILIES if name not in memorised) >= 300
    assert [row["prompt"] for row in rows] == [example.question for example in held_out()]


def test_training_never_sees_a_question_of_the_test_set():
    tested = {example.question for example in held_out() if not FAMILIES[example.family].memorised}
    assert not tested & {example.question for example in islice(training_examples(1), 100_000)}


def test_paths_and_checker_need_neither_torch_nor_transformers():
    code = "import sys, dlm.demo; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_small_numbers_are_single_tokens_and_the_vocabulary_is_small(tokenizer):
    assert len(tokenizer) <= 1024
    assert all(len(tokenizer.tokenize(f" {number}")) == 1 for number in range(1, 31))


def test_the_chat_template_is_lladas(tokenizer):
    messages = [{"role": "user", "content": " Count from 1 to 3.\n"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nCount from 1 to 3.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    names = [
        "<|startoftext|>",
        "<|endoftext|>",
        "<|mdm_mask|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    assert tokenizer.convert_tokens_to_ids(names) == [0, 1, 2, 3, 4, 5]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id) == (1, 1, 2)
    user, assistant, gap = (tokenizer.encode(word)[0] for word in ("user", "assistant", "\n\n"))
    question = tokenizer.encode("Count from 1 to 3.")
    assert ids == [0, 3, user, 4, gap, *question, 5, 3, assistant, 4, gap]


def test_every_answer_fits_into_64_tokens_and_some_need_several_blocks(tokenizer):
    longest: Counter[str] = Counter()
    for example in islice(training_examples(2), 5_000):
        length = len(tokenizer.encode(example.answer)) + 1
        longest[example.family] = max(longest[example.family], length)
    assert max(longest.values()) <= 64
    assert sum(length > 16 for length in longest.values()) >= 2


def test_fresh_questions_are_different_and_none_of_those_kept_back():
    found = fresh_examples("split", 0, 100)
    asked = {example.question for example in found}
    assert len(asked) == 100
    assert not asked & {example.question for example in held_out()}
    assert found == fresh_examples("split", 0, 100)
    assert asked != {example.question for example in fresh_examples("split", 1, 100)}
    with pytest.raises(ConfigError, match=r"the demo's family split has \d+ new questions, not 1000; ask for fewer"):
        fresh_examples("split", 0, 1000)
    with pytest.raises(ConfigError, match="demo family 'poem' does not exist"):
        fresh_examples("poem", 0, 1)
