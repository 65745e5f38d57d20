"""Checkpoints in the real format, and everything that can be wrong with one."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlm.errors import CheckpointError
from dlm.models.io.hub import resolve_folder
from dlm.models.io.loading import (
    load_checkpoint,
    random_checkpoint,
    read_checkpoint_config,
    save_checkpoint,
)
from dlm.models.io.sources import SafetensorsSource
from dlm.models.sizes import SIZES

GOLDEN = Path(__file__).parents[2] / "goldens" / "llada"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "model", ignore=shutil.ignore_patterns("*.jsonl", "logits*")))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if value is KeyError:
            del config[key]
        else:
            config[key] = value
    path.write_text(json.dumps(config))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(folder).backbone.named_parameters())


def test_a_sharded_checkpoint_loads_as_the_single_file(folder: Path) -> None:
    whole = weights(folder)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, members in shards.items():
        save_file({name: tensors[name] for name in members}, folder / file)
    index = {"weight_map": {name: file for file, members in shards.items() for name in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    assert all(torch.equal(whole[name], value) for name, value in weights(folder).items())
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002.safetensors is named by the index and does not exist"):
        load_checkpoint(folder)


def test_save_and_load_are_inverse(folder: Path, tmp_path: Path) -> None:
    first = load_checkpoint(folder)
    save_checkpoint(first.backbone, first.special, tmp_path / "copy")
    again = weights(tmp_path / "copy")
    assert all(torch.equal(value, again[name]) for name, value in first.backbone.named_parameters())
    assert read_checkpoint_config(tmp_path / "copy").backbone == first.backbone.config
    assert load_file(tmp_path / "copy" / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()


def test_dtype_is_the_one_asked_for_or_the_stored_one(folder: Path) -> None:
    assert load_checkpoint(folder).backbone.dtype == torch.float32
    half = load_checkpoint(folder, dtype="bfloat16").backbone
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half.rotary.cos.dtype == torch.float32
    with pytest.raises(CheckpointError, match="dtype 'int4' is not one of auto, float32"):
        load_checkpoint(folder, dtype="int4")


def test_tied_embeddings_share_one_tensor(folder: Path) -> None:
    edit_config(folder, weight_tying=True)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.transformer.ff_out.weight"]
    save_file(tensors, folder / "model.safetensors")
    backbone = load_checkpoint(folder).backbone
    assert backbone.lm_head.weight.data_ptr() == backbone.embedding.weight.data_ptr()


def test_the_turn_end_comes_from_the_tokenizer_files(folder: Path) -> None:
    assert read_checkpoint_config(folder).special.end_ids == (510,)
    tokens = [{"id": 7, "content": "<|eot_id|>"}]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    assert read_checkpoint_config(folder).special.end_ids == (510, 7)


@pytest.mark.parametrize("key", ["d_model", "rope_theta", "mask_token_id", "weight_tying", "include_qkv_bias"])
def test_a_config_that_lacks_a_key_is_refused_by_name(folder: Path, key: str) -> None:
    edit_config(folder, **{key: KeyError})
    with pytest.raises(CheckpointError, match=f"lacks {key}"):
        read_checkpoint_config(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*supported families: llada"),
        (
            {"block_type": "sequential", "alibi": True},
            "block_type='sequential' must be 'llama'.*\n.*alibi=True must be False",
        ),
        ({"n_heads": 5}, "d_model=64 must divide by n_heads=5"),
    ],
)
def test_a_config_of_another_kind_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint_config(folder)


def test_a_truncated_file_says_so(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read.*truncated: fetch it again"):
        load_checkpoint(folder)


def test_foreign_missing_and_misshapen_tensors_are_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["extra"] = tensors.pop("model.transformer.ln_f.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(model.transformer.ln_f.weight\), 1 unknown \(extra\)"):
        load_checkpoint(folder)
    tensors["model.transformer.ln_f.weight"] = tensors.pop("extra")[:-1].clone()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"ln_f.weight has shape \[63\], config.json makes it \[64\]"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", None, "config.json does not exist"),
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", "[]", "holds a list, not an object"),
        ("model.safetensors", None, "has neither model.safetensors nor model.safetensors.index.json"),
    ],
)
def test_broken_folders_are_refused(folder: Path, name: str, text: str | None, message: str) -> None:
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_hub_ids_need_a_revision_and_use_the_token_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="revision is not set for the hub id 'owner/name'; pin a commit"):
        resolve_folder("owner/name")
    with pytest.raises(CheckpointError, match="neither a folder that exists nor a hub id"):
        resolve_folder("./missing")
    with pytest.raises(CheckpointError, match="has no meaning for the local folder"):
        resolve_folder(str(tmp_path), "abc")
    with pytest.raises(CheckpointError, match="is a file"):
        resolve_folder(__file__)
    asked: dict[str, Any] = {}

    def fetch(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(tmp_path)

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert resolve_folder("owner/name", "abc") == tmp_path
    assert (asked["repo"], asked["revision"], asked["token"]) == ("owner/name", "abc", "hf_secret")
    assert not any(pattern.endswith(".py") for pattern in asked["allow_patterns"])

    def fail(repo: str, **options: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match="cannot fetch 'owner/name' at revision 'abc': ConnectionError: no route"):
        resolve_folder("owner/name", "abc")


def test_random_models_are_the_same_for_a_seed() -> None:
    first, again, other = (random_checkpoint("tiny", seed=seed).backbone for seed in (1, 1, 2))
    assert torch.equal(first.layers[1].down.weight, again.layers[1].down.weight)
    assert not torch.equal(first.layers[1].down.weight, other.layers[1].down.weight)


def test_the_size_called_57m_has_that_body() -> None:
    with torch.device("meta"):
        from dlm.models.backbone import Backbone, BackboneConfig

        size = SIZES["57m"]
        config = BackboneConfig(
            size.vocab_size, size.hidden_size, size.intermediate_size, size.num_layers, size.num_heads, size.num_heads,
            size.hidden_size // size.num_heads, 1e-5, 1e4, 8,
        )  # fmt: skip
        model = Backbone(config)
    body = sum(parameter.numel() for parameter in model.layers.parameters())
    assert 50e6 < body < 60e6


def test_weights_are_read_one_tensor_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    held: list[weakref.ref[torch.Tensor]] = []
    read = SafetensorsSource.read

    def watched(source: SafetensorsSource, name: str) -> torch.Tensor:
        assert all(reference() is None for reference in held)
        tensor = read(source, name)
        seen.append(name)
        held.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(SafetensorsSource, "read", watched)
    load_checkpoint(folder)
    assert sorted(seen) == sorted(load_file(folder / "model.safetensors"))
