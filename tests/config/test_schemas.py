"""Every choice in `conf/` composes and builds; what is wrong fails at once with its path and its remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from dlm import _paths as paths
from dlm._paths import conf_dir
from dlm.cli.command_line import compose_config
from dlm.config.build import instantiate
from dlm.config.checks import check_predict
from dlm.decoding.algorithms import ALGORITHMS
from dlm.decoding.engines import ENGINES
from dlm.decoding.options import DecoderOptions
from dlm.decoding.params import PARAM_NAMES, SamplingParams
from dlm.decoding.samplers import SAMPLERS
from dlm.errors import ConfigError
from dlm.serving.config import register as register_serve

GROUPS = ("model", "engine", "sampler", "algorithm", "data", "trainer", "logger", "trace")
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((conf_dir() / group).glob("*.yaml"))]
PREDICT_FILES = sorted(
    [
        conf_dir() / "predict.yaml",
        conf_dir() / "merge.yaml",
        conf_dir() / "report.yaml",
        *(p for g in GROUPS for p in (conf_dir() / g).glob("*.yaml")),
    ]
)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes(group: str, choice: str) -> None:
    config = compose_config("predict", [f"{group}={choice}"])
    if group == "algorithm":
        assert config.algorithm == choice
    else:
        assert isinstance(config[group], DictConfig)


@pytest.mark.parametrize(("group", "choice"), [pair for pair in CHOICES if pair[0] in ("engine", "sampler")])
def test_every_engine_and_sampler_is_built(group: str, choice: str) -> None:
    built = instantiate(compose_config("predict", [f"{group}={choice}"])[group])
    registry = {"engine": ENGINES, "sampler": SAMPLERS}[group]
    assert choice == "auto" or type(built) is registry[choice]


@pytest.mark.parametrize(
    ("group", "overrides"),
    [
        ("model", ["model=demo"]),
        ("model", ["model=random"]),
        ("model", ["model=llada_8b_instruct"]),
        ("data", ["data=demo"]),
        ("data", ["data=jsonl", "data.path=x"]),
        ("data", ["data=hf", "data.path=x"]),
    ],
)
def test_models_and_data_are_built_without_being_read(group: str, overrides: list[str]) -> None:
    assert isinstance(instantiate(compose_config("predict", overrides)[group]).faults(), list)


def test_every_engine_and_sampler_has_a_file() -> None:
    assert {choice for group, choice in CHOICES if group == "engine"} == {*ENGINES, "auto"}
    assert {choice for group, choice in CHOICES if group == "sampler"} == {*SAMPLERS, "auto"}


def test_the_algorithm_files_are_the_algorithm_table() -> None:
    pairs = {}
    for group, choice in CHOICES:
        if group == "algorithm" and choice != "auto":
            config = compose_config("predict", [f"algorithm={choice}"])
            engine = instantiate(config.engine)
            pairs[choice] = (getattr(engine, "name", "dual_cache"), instantiate(config.sampler).name)
    assert pairs == {name: (algorithm.engine, algorithm.sampler) for name, algorithm in ALGORITHMS.items()}


def test_an_engine_or_sampler_of_ones_own_goes_before_the_algorithm() -> None:
    config = compose_config("predict", ["algorithm=basic", "sampler=factor"])
    assert instantiate(config.engine).name == "full"
    assert instantiate(config.sampler).name == "factor"


def test_generation_has_the_fields_of_sampling_params() -> None:
    generation = compose_config("predict").generation
    assert set(generation) == {*PARAM_NAMES, "stop"}
    SamplingParams(**{name: generation[name] for name in PARAM_NAMES})


def test_the_decoder_part_makes_decoder_options() -> None:
    DecoderOptions(**compose_config("predict").decoder)


def test_the_default_is_the_demo() -> None:
    config = compose_config("predict")
    check_predict(config)
    assert (config.model.path, config.algorithm) == ("demo", "dual_cache")
    assert instantiate(config.sampler).threshold == 0.9


@pytest.mark.parametrize("path", PREDICT_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_key_has_a_comment(path: Path) -> None:
    body = path.read_text().partition("_self_")[2] or path.read_text().partition("@_here_")[2]
    for number, line in enumerate(body.splitlines()):
        opens_a_part = line.rstrip().endswith(":")
        if re.match(r"\s*[\w]+:", line) and not opens_a_part:
            assert "#" in line, f"{path.name}: line {number} behind the defaults has no comment: {line!r}"


def test_no_file_of_predict_is_left_out_of_the_schemas() -> None:
    for path in PREDICT_FILES:
        if path.parent.name not in ("algorithm", conf_dir().name):
            first = yaml.safe_load(path.read_text())["defaults"][0]
            assert first.startswith(f"/schema/{path.parent.name}/"), path


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sampler.thresold=1"], ["sampler.thresold", "did you mean sampler.threshold?"]),
        (["smapler=fixed"], ["smapler", "did you mean sampler?"]),
        (["sampler=fixd"], ["sampler=fixd", "did you mean sampler=fixed?", "dinfer_threshold"]),
        (["generation.gen_length=abc"], ["generation.gen_length=abc", "Integer"]),
        (["+generation.foo=1"], ["generation.foo is no key"]),
        (["+foo=1"], ["foo is no key", "run_dir"]),
        (["sampler=fixed", "sampler.threshold=0.5"], ["sampler.threshold", "sampler.remasking"]),
        (["data.path=x"], ["data.path is no key", "data.limit"]),
        (["threshold"], ["no key=value"]),
        (["hydra.run.dir=x"], ["run_dir="]),
        (["logger=wandb", "logger.tags=x"], ["logger.tags=x"]),
        (["~generation.seed"], ["generation.seed"]),
    ],
)
def test_a_wrong_key_type_or_choice_names_path_and_remedy(overrides: list[str], said: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        check_predict(compose_config("predict", overrides))
    for part in said:
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=jsonl"], "data.path is not set: write data.path=<value>"),
        (["data=jsonl", "data.path=/nowhere/x.jsonl"], "data.path=/nowhere/x.jsonl: no such file"),
        (["data=jsonl", "data.path=."], "a folder, not a file"),
        (["sampler=fixed", "generation.steps=2"], "steps=2 must be at least 4"),
        (["generation.temperature=3"], "generation.temperature=3.0"),
        (["generation.max_nfe=1"], "generation.max_nfe=1"),
        (["sampler.threshold=1.5"], "sampler.threshold=1.5"),
        (["sampler=fixed", "sampler.remasking=foo"], "remasking='foo' must be one of low_confidence"),
        (["sampler=factor", "sampler.factor=-1"], "sampler.factor=-1.0"),
        (["generation.stop=['']"], "generation.stop: an empty string"),
        (["trainer.devices=2"], "several processes are trainer=ddp"),
        (["trainer.num_nodes=2"], "several processes are trainer=ddp"),
        (["trainer.strategy=fsdp"], "trainer.strategy=fsdp: auto (one process) or ddp"),
        (["trainer.devices=many"], "trainer.devices=many: a number, or auto"),
        (["model.revision=abc"], "set model.revision=null"),
        (["model.path=nowhere"], "model.path=nowhere: no such folder"),
        (["model.path=owner/name"], "model.revision: owner/name is a hub id"),
        (["model=random", "model.size=huge"], "model.size=huge: no such size; choose one of tiny"),
        (["model.dtype=int8"], "model.dtype=int8: choose one of auto"),
        (["decoder.max_num_seqs=0"], "decoder.max_num_seqs=0: must be at least 1"),
        (["decoder.max_num_batched_tokens=8"], "a block alone has 16 positions"),
        (["data.limit=0"], "data.limit=0"),
        (["progress.every_seconds=0"], "progress.every_seconds=0"),
        (["trainer=ddp", "trainer.devices=${oc.env:DLM_NO_SUCH_VARIABLE}"], "DLM_NO_SUCH_VARIABLE"),
    ],
)
def test_a_wrong_value_or_combination_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_predict(compose_config("predict", overrides))
    assert said in str(raised.value)


def test_all_faults_are_told_at_once() -> None:
    wrong = ["data=jsonl", "model.revision=x", "generation.temperature=9", "generation.top_p=0", "sampler.threshold=2"]
    wrong += ["decoder.max_num_seqs=0", "trainer.devices=2"]
    with pytest.raises(ConfigError) as raised:
        check_predict(compose_config("predict", wrong))
    for part in ("data.path", "model.revision", "temperature", "top_p", "threshold", "max_num_seqs", "trainer.devices"):
        assert part in str(raised.value)


def test_the_experiment_of_predict_composes() -> None:
    config = compose_config("predict", ["experiment=llada_gsm8k"])
    assert (config.model.path, config.data.path) == ("GSAI-ML/LLaDA-8B-Instruct", "openai/gsm8k")
    assert (config.generation.gen_length, config.generation.block_length) == (256, 32)


def test_an_experiment_of_another_program_is_refused() -> None:
    with pytest.raises(ConfigError):
        compose_config("predict", ["experiment=demo_smoke"])


def test_configuration_files_are_those_of_the_checkout_before_those_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "dlm"
    for folder in (package / "conf", tmp_path / "conf"):
        folder.mkdir(parents=True)
        (folder / "predict.yaml").write_text("")
    monkeypatch.setattr(paths, "PACKAGE", package)
    assert paths.conf_dir() == package / "conf", "installed: a stranger's conf beside the package is not ours"
    (tmp_path / "pyproject.toml").write_text("")
    assert paths.conf_dir() == tmp_path / "conf", "an editable install uses the files being edited"
    (package / "conf" / "predict.yaml").unlink()
    (tmp_path / "conf" / "predict.yaml").unlink()
    with pytest.raises(ConfigError, match="reinstall dlm"):
        paths.conf_dir()


def test_max_tokens_above_gen_length_is_no_fault() -> None:
    check_predict(compose_config("predict", ["generation.max_tokens=1000"]))


def test_torchrun_with_a_single_process_trainer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="each would decode everything; use trainer=ddp"):
        check_predict(compose_config("predict"))


def test_ddp_takes_its_size_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "3")
    trainer = compose_config("predict", ["trainer=ddp"]).trainer
    assert (trainer.devices, trainer.num_nodes) == (4, 3)


def test_the_resolved_configuration_is_plain_values() -> None:
    config = compose_config("predict", ["trainer=ddp"])
    assert isinstance(OmegaConf.to_container(config, resolve=True, throw_on_missing=True), dict)


def test_choices_of_ones_own_come_from_another_folder(tmp_path: Path) -> None:
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler" / "mine.yaml").write_text(
        "defaults:\n  - /schema/sampler/threshold@_here_\n  - _self_\nthreshold: 0.42\n"
    )
    config = compose_config("predict", ["sampler=mine"], str(tmp_path))
    assert instantiate(config.sampler).threshold == 0.42
    with pytest.raises(ConfigError, match="is no folder"):
        compose_config("predict", [], str(tmp_path / "nowhere"))


def test_a_key_with_the_name_of_another_programs_group_is_a_key() -> None:
    """`conf/algorithm/` is a group of `dlm.predict`; to `dlm.serve`, `algorithm` is a name."""
    register_serve()
    assert compose_config("serve", ["algorithm=klass", "batch_size=3"]).algorithm == "klass"
    with pytest.raises(ConfigError, match="algorithm=null"):
        compose_config("serve", ["algorithm=null"])
