"""`python -m dlm.convert`: there and back with equal tensors and equal text, checked before, whole or not at all."""

from __future__ import annotations

import json
import re
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from dlm import convert, predict
from dlm._paths import conf_dir
from dlm.cli.command_line import compose_config
from dlm.demo import CHECKPOINT
from dlm.errors import CheckpointError, ConfigError, RunError
from dlm.models.io import export
from dlm.models.io.dcp import folder as dcp
from dlm.models.io.dcp.folder import DcpSource
from dlm.models.io.loading import load_checkpoint
from dlm.models.io.sources import INDEX, SINGLE, SafetensorsSource
from tests.models.checkpoints import copy_golden, golden_tensors, save_by_two_ranks, save_dcp
from tests.running import answers, python, run

SMALL = "shard_gib=0.0001"


def converted(output: Path, *overrides: str) -> Path:
    assert convert.run(compose_config("convert", [*overrides, f"output={output}"]), ()) == 0
    return output


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    source = SafetensorsSource(folder)
    return {name: source.read(name) for name in source.names()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in expected.items())


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return copy_golden(tmp_path / "base")


@pytest.mark.slow
def test_there_and_back_gives_equal_tensors_and_text(tmp_path: Path) -> None:
    there = converted(tmp_path / "dcp", "model.path=demo", "shard_gib=0.001")
    assert len(list(there.glob("*.distcp"))) > 1
    back = converted(tmp_path / "hf", f"model.dcp_path={there}", f"model.base_model={there}", "shard_gib=0.001")
    assert_equal(all_tensors(back), load_file(CHECKPOINT / SINGLE))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (back / name).read_bytes() == (CHECKPOINT / name).read_bytes()
    routes = {
        "demo": ["model=demo"],
        "dcp": ["model=demo", f"model.dcp_path={there}"],
        "base": ["model=checkpoint", f"model.dcp_path={there}", "model.base_model=demo", "model.dtype=float32"],
        "hf": ["model=checkpoint", f"model.path={back}"],
    }
    rows = {}
    for name, overrides in routes.items():
        arguments = [*overrides, "data=demo", "data.limit=3", f"run_dir={tmp_path / name}"]
        assert predict.run(compose_config("predict", arguments), arguments) == 0
        rows[name] = answers(tmp_path / name)
    assert len(rows["demo"]) == 3
    assert all(found == rows["demo"] for found in rows.values())


def test_what_two_ranks_wrote_becomes_a_folder_without_the_optimizer(base: Path, tmp_path: Path) -> None:
    source = save_by_two_ranks(tmp_path / "step", tmp_path)
    output = converted(tmp_path / "hf", f"model.dcp_path={source}", f"model.base_model={base}")
    assert_equal(load_file(output / SINGLE), golden_tensors())
    with safe_open(output / SINGLE, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_torch_reads_what_is_written(base: Path, tmp_path: Path) -> None:
    folder = converted(tmp_path / "dcp", f"model.path={base}", SMALL)
    dcp_to_torch_save(folder, tmp_path / "whole.pt")
    assert_equal(torch.load(tmp_path / "whole.pt", weights_only=True), golden_tensors())
    assert str(tmp_path) not in (folder / dcp.METADATA).read_bytes().decode("latin-1")


def test_shards_are_of_the_size_asked_for(base: Path, tmp_path: Path) -> None:
    folder = save_dcp(golden_tensors(), tmp_path / "dcp")
    output = converted(tmp_path / "hf", f"model.dcp_path={folder}", f"model.base_model={base}", SMALL)
    index = json.loads((output / INDEX).read_text())
    sizes: dict[str, list[int]] = {}
    for name, file in index["weight_map"].items():
        sizes.setdefault(file, []).append(golden_tensors()[name].nbytes)
    limit = int(0.0001 * 2**30)
    assert len(sizes) > 3
    assert all(sum(members) <= limit or len(members) == 1 for members in sizes.values())
    assert index["metadata"]["total_size"] == sum(sum(members) for members in sizes.values())
    assert sorted(path.name for path in output.glob("*.safetensors")) == sorted(sizes)
    assert_equal(all_tensors(output), golden_tensors())


@pytest.mark.parametrize("form", ["hf", "dcp"])
def test_one_tensor_is_in_memory_at_a_time(
    base: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    most = 0
    read = SafetensorsSource.read

    def watched(source: SafetensorsSource, name: str) -> torch.Tensor:
        nonlocal most
        tensor = read(source, name).clone()
        held.append(weakref.ref(tensor))
        most = max(most, sum(reference() is not None for reference in held))
        return tensor

    monkeypatch.setattr(SafetensorsSource, "read", watched)
    converted(tmp_path / form, f"model.path={base}", f"format={form}")
    assert len(held) == len(golden_tensors())
    assert most <= 2, "the one that is written and the one that is read next"


def test_weights_are_cast_and_the_config_says_so(base: Path, tmp_path: Path) -> None:
    output = converted(tmp_path / "hf", f"model.path={base}", "format=hf", "model.dtype=bfloat16")
    assert_equal(all_tensors(output), {name: tensor.bfloat16() for name, tensor in golden_tensors().items()})
    assert load_checkpoint(output).backbone.dtype == torch.bfloat16


def test_tensors_of_several_dtypes_keep_them(base: Path, tmp_path: Path) -> None:
    tensors = golden_tensors()
    tensors["model.transformer.ln_f.weight"] = tensors["model.transformer.ln_f.weight"].double()
    first = "model.transformer.blocks.0.attn_norm.weight"
    tensors[first] = tensors[first].bfloat16()
    save_file(tensors, base / SINGLE)
    there = converted(tmp_path / "dcp", f"model.path={base}")
    back = converted(tmp_path / "hf", f"model.dcp_path={there}", f"model.base_model={base}")
    assert_equal(all_tensors(back), tensors)


def test_names_and_shapes_are_checked_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    tensors = golden_tensors()
    tensors["model.transformer.ln_f.weight"] = torch.ones(3)
    folder = save_dcp(tensors, tmp_path / "dcp")
    with pytest.raises(CheckpointError, match=r"ln_f.weight has shape \[3\]"):
        converted(tmp_path / "out", f"model.dcp_path={folder}", f"model.base_model={base}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "dcp"]


@pytest.mark.parametrize("form", ["hf", "dcp"])
def test_a_conversion_that_fails_leaves_nothing(
    base: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0
    read = export.ModelTensors.read

    def failing(tensors: export.ModelTensors, name: str) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == 5:
            raise OSError(28, "No space left on device")
        return read(tensors, name)

    monkeypatch.setattr(export.ModelTensors, "read", failing)
    with pytest.raises(RunError, match=r"output=.*out cannot be written: .*No space left"):
        converted(tmp_path / "out", f"model.path={base}", f"format={form}")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_an_output_that_holds_something_is_refused_and_an_empty_one_used(base: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"out exists and is not an empty folder; name a new one"):
        converted(output, f"model.path={base}")
    assert [path.name for path in output.iterdir()] == ["notes.txt"]
    (output / "notes.txt").unlink()
    assert DcpSource(converted(output, f"model.path={base}")).names()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], ["model.path is not set", "output is not set"]),
        (["model.dcp_path=/nowhere"], ["model.base_model is not set", "model.dcp_path=/nowhere: no such folder"]),
        (["model.path=demo", "model.base_model=demo"], ["model.base_model=demo: has a meaning with model.dcp_path"]),
        (["model.path=demo", "model.base_model=demo", "model.dcp_path=."], ["one of them names configuration"]),
        (["model.path=demo", "model.adapter_path=/nowhere"], ["model.adapter_path=/nowhere: no such folder"]),
        (["model.dcp_path=.", "model.base_model=owner/name"], ["model.revision: owner/name is a hub id"]),
        (["model.dcp_path=.", "model.base_model=/nowhere"], ["model.base_model=/nowhere: no such folder"]),
        (["model=random"], ["only checkpoints are converted"]),
        (
            ["model.path=demo", "format=zip", "shard_gib=0"],
            ["format=zip: choose one of hf, dcp", "shard_gib=0.0: must"],
        ),
        (["model.path=demo", "model.dtype=int4"], ["model.dtype=int4: choose one of auto"]),
    ],
)
def test_all_faults_are_told_at_once(overrides: list[str], said: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        convert.run(compose_config("convert", overrides), ())
    for part in said:
        assert part in str(raised.value)


def test_every_key_has_a_comment() -> None:
    body = (conf_dir() / "convert.yaml").read_text().partition("_self_")[2]
    keys = [line for line in body.splitlines() if re.match(r"\s*\w+: ", line)]
    assert len(keys) > 4
    assert all("#" in line for line in keys), keys


def test_help_names_the_keys(tmp_path: Path) -> None:
    result = run(python("dlm.convert", "--help"), tmp_path)
    assert result.returncode == 0
    for word in ("model.dcp_path=", "model.base_model=", "output=", "shard_gib=", "format="):
        assert word in result.stdout


def test_a_wrong_command_exits_with_two_and_no_traceback(tmp_path: Path) -> None:
    result = run(python("dlm.convert", "model.path=demo", "ouput=x"), tmp_path)
    assert result.returncode == 2
    assert "did you mean output?" in result.stderr
    assert "Traceback" not in result.stderr
