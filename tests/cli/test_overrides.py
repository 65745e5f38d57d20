"""An override that Hydra cannot read is named, with what to type instead."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dlm.cli.command_line import compose_config
from dlm.cli.overrides import check_overrides
from dlm.errors import ConfigError
from tests import running

PATHS = {
    "model.path=/data/epoch=9-step=8.ckpt": "'model.path=\"/data/epoch=9-step=8.ckpt\"'",
    "data.path=/data/介绍.jsonl": "'data.path=\"/data/介绍.jsonl\"'",
    "data.path=/data/a#b.jsonl": "'data.path=\"/data/a#b.jsonl\"'",
    "data.path=/data/a(1).jsonl": "'data.path=\"/data/a(1).jsonl\"'",
    "data.path=/data/a,b.jsonl": "'data.path=\"/data/a,b.jsonl\"'",
    "data.path=~/a.jsonl": "'data.path=\"~/a.jsonl\"'",
    "data.path=it's.jsonl": "'data.path=\"it'\"'\"'s.jsonl\"'",
    'data.path="a.jsonl': '\'data.path="\\"a.jsonl"\'',
    "data.path=[a].jsonl": "'data.path=\"[a].jsonl\"'",
    "data.path={a: b.jsonl": "'data.path=\"{a: b.jsonl\"'",
    "data.path=a(b c)": "'data.path=\"a(b c)\"'",
    "generation.stop=[<|eot_id|>]": "'generation.stop=[\"<|eot_id|>\"]'",
    'generation.stop=[<|a|>, "b", c]': '\'generation.stop=["<|a|>","b","c"]\'',
}


@pytest.mark.parametrize("override", PATHS)
def test_what_to_write_is_said_and_can_be_written(override: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose_config("predict", ["data=jsonl", "model=checkpoint", override])
    assert "cannot be read" in str(raised.value) or "has several values" in str(raised.value)
    assert repr(override) in str(raised.value)
    assert str(raised.value).endswith(f"; write {PATHS[override]}")
    (word,) = shlex.split(PATHS[override])
    key, _, value = override.partition("=")
    read = OmegaConf.select(compose_config("predict", ["data=jsonl", "model=checkpoint", word]), key)
    assert read[0].startswith("<|") if key == "generation.stop" else read == value


@given(st.text(max_size=12))
def test_whatever_a_value_is_it_is_read_or_named(value: str) -> None:
    override = f"data.path={value}"
    try:
        check_overrides([override], sweeps=False)
    except ConfigError as error:
        told, _, remedy = str(error).rpartition("; write ")
        if told:
            (word,) = shlex.split(remedy)
            parsed = OverridesParser.create().parse_overrides([word])[0]
            assert parsed.value() == value or isinstance(parsed.value(), list)
        else:
            assert not value.isprintable()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("word", "'word' is no key=value: everything is set as key=value; see --help"),
        ("données=1", "'données' is no key"),
        ("data path=x", "'data path' is no key"),
        ("=x", "'' is no key"),
        ("~", "'~' is no key"),
        ("data.path=\udcff", "is not UTF-8"),
        ("data.path=" + "x=" * 5000, "cannot be read"),
        ("data.path=" + "[" * 3000, "cannot be read"),
        ("data.path=a\nb", "cannot be read"),
    ],
)
def test_what_no_quotes_can_mend_is_named_and_cut(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_overrides([override], sweeps=True)
    told = str(raised.value).partition("; write ")[0]
    assert said in told
    assert len(told) < 400
    assert "\n" not in told


def test_all_of_them_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        check_overrides(["data.path=a#b", "generation.seed=1", "model.path=a=b"], sweeps=False)
    assert str(raised.value).count("cannot be read") == 2
    assert "generation.seed" not in str(raised.value)


def test_several_values_are_for_a_multirun() -> None:
    check_overrides(["generation.seed=1,2", "sampler.threshold=range(0,1)"], sweeps=True)
    for override in ("generation.seed=1,2", "generation.seed=choice(1,2)"):
        with pytest.raises(ConfigError, match="for -m alone"):
            check_overrides([override], sweeps=False)


@pytest.mark.parametrize("flags", [["-m"], ["--info", "config"], ["--cfg", "hydra"]])
def test_hydras_own_ways_in_say_it_too(flags: list[str], tmp_path: Path) -> None:
    done = running.run(running.python("dlm.predict", *flags, "data=jsonl", "data.path=/a=b"), tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "ConfigError: 'data.path=/a=b' cannot be read (mismatched input '=' expecting <EOF>); "
        "write 'data.path=\"/a=b\"'"
    ]
