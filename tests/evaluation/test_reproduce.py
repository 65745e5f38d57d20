"""`experiment=reproduce/...`: published settings and scores, ready for whoever has the weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from dlm._paths import conf_dir
from dlm.cli.command_line import compose_config
from dlm.config.build import instantiate
from dlm.errors import ConfigError
from dlm.evaluation.checks import check_evaluate
from dlm.evaluation.config import register
from tests import running

FOLDER = conf_dir() / "experiment" / "reproduce"
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
MODELS = {
    "llada_8b": "GSAI-ML/LLaDA-8B-Instruct",
    "llada_1_5": "GSAI-ML/LLaDA-1.5",
    "dream_7b": "Dream-org/Dream-v0-Instruct-7B",
    "llada2_mini": "inclusionAI/LLaDA2.0-mini",
}
PAPERS = {"llada_8b": "2502.09992", "llada_1_5": "2505.19223", "dream_7b": "2508.15487", "llada2_mini": "2512.15745"}


def test_there_is_one_for_each_model_and_task() -> None:
    wanted = [f"{model}_{task}" for model in MODELS for task in ("gsm8k", "humaneval", "math", "mbpp")]
    assert sorted(wanted) == EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_composes_checks_and_names_its_source(name: str, tmp_path: Path) -> None:
    register()
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    overrides = [f"experiment=reproduce/{name}", f"data.path={data}", "allow_code_execution=true"]
    config = compose_config("evaluate", overrides)
    check_evaluate(config, overrides)
    model, _, task = name.rpartition("_")
    assert (config.model.path, config.task.name) == (MODELS[model], task)
    assert f"arXiv {PAPERS[model]}" in config.published.source
    assert f"arXiv {PAPERS[model]}" in (FOLDER / f"{name}.yaml").read_text().partition("published:")[0]
    assert 0 < config.published.tolerance <= 10
    assert config.published.score > 30
    generation = config.generation
    assert instantiate(config.sampler).name in ("fixed", "dream", "llada2")
    if model == "llada2_mini":
        assert (generation.block_length, generation.temperature) == (32, 0.0)
    else:
        assert generation.steps == generation.gen_length, "one token a step"


@pytest.mark.parametrize(
    ("name", "score", "settings"),
    [
        ("llada_8b_gsm8k", 78.6, {"gen_length": 256, "block_length": 8, "confidence_eos_eot_inf": False}),
        ("llada_8b_humaneval", 49.4, {"gen_length": 512, "block_length": 512, "logits_eos_inf": True}),
        ("llada_1_5_math", 42.6, {"gen_length": 1024, "block_length": 128, "confidence_eos_eot_inf": True}),
        ("dream_7b_gsm8k", 81.0, {"gen_length": 256, "temperature": 0.1, "top_p": 0.9}),
        ("llada2_mini_mbpp", 81.5, {"block_length": 32, "eos_early_stop": True}),
    ],
)
def test_settings_and_scores_are_those_of_the_source(name: str, score: float, settings: dict[str, object]) -> None:
    register()
    config = compose_config("evaluate", [f"experiment=reproduce/{name}"])
    assert config.published.score == score
    assert {key: config.generation[key] for key in settings} == settings


def test_the_data_file_and_the_running_of_code_are_the_user_s_to_name() -> None:
    register()
    overrides = ["experiment=reproduce/llada_8b_mbpp"]
    with pytest.raises(ConfigError, match=r"data\.path is not set"):
        check_evaluate(compose_config("evaluate", overrides), overrides)
    overrides.append(f"data.path={__file__}")
    with pytest.raises(ConfigError, match="allow_code_execution=true"):
        check_evaluate(compose_config("evaluate", overrides), overrides)


def test_it_is_shown_by_cfg_job(tmp_path: Path) -> None:
    command = running.python("dlm.evaluate", "--cfg", "job", "experiment=reproduce/llada_1_5_gsm8k", "data.path=x")
    done = running.run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["published"]["score"] == 83.8
    assert shown["model"]["path"] == "GSAI-ML/LLaDA-1.5"
    assert shown["data"]["prompt_field"] == "question"
    assert not list(tmp_path.iterdir())


def test_help_lists_tasks_and_experiments_of_this_program_alone(tmp_path: Path) -> None:
    shown = running.run(running.python("dlm.evaluate", "--help"), tmp_path).stdout
    assert "reproduce/dream_7b_gsm8k" in shown
    assert "multiple_choice_letters" in shown
    assert "demo_smoke" not in shown
    assert "reproduce/" not in running.run(running.python("dlm.predict", "--help"), tmp_path).stdout


def test_showing_and_checking_load_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from dlm.cli.command_line import compose_config; from dlm.evaluation.config import register\n"
        "from dlm.evaluation.checks import check_evaluate; import dlm.evaluate\n"
        "register(); check_evaluate(compose_config('evaluate', []), [])\n"
        "heavy = {'torch', 'lightning', 'transformers', 'wandb'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = running.run([sys.executable, "-c", program], tmp_path)
    assert done.returncode == 0, done.stderr
