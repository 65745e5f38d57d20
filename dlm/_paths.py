"""Where the files that ship beside the code are."""

from __future__ import annotations

from pathlib import Path

from dlm.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent

DEMO_CHECKPOINT = PACKAGE / "demo" / "checkpoint"
"""Folder of the bundled checkpoint and its tokenizer, in LLaDA's format."""

DEMO_PROMPTS = PACKAGE / "demo" / "prompts.jsonl"
"""The held-out prompts, rows of `{"id", "family", "prompt"}`."""


def conf_dir() -> Path:
    """The folder of configuration files, absolute.

    A checkout's own `conf/` comes first, so that an editable install uses the files being edited and not the copy that
    the install left behind; a wheel has them inside the package, as `dlm/conf`.
    """
    beside, inside = PACKAGE.parent / "conf", PACKAGE / "conf"
    checkout = (PACKAGE.parent / "pyproject.toml").is_file() and (beside / "predict.yaml").is_file()
    for candidate in (beside, inside) if checkout else (inside,):
        if (candidate / "predict.yaml").is_file():
            return candidate
    raise ConfigError(f"no configuration files at {inside}: reinstall dlm, or run inside a checkout")
