"""Checkpoint folders by name: a local folder as it is, a hub id as the snapshot of a pinned revision.

The hub is the one that HF_ENDPOINT names, asked with the token of HF_TOKEN, if any. Files with code are not fetched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from dlm.errors import CheckpointError

CONFIG_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
"""Configuration and tokenizer."""

WEIGHT_FILES = ("*.safetensors",)

ATTEMPTS = 4
"""How often a download that the hub answers with 429 (too many requests) is tried."""

PATIENCE_SECONDS = 600.0
"""No attempt begins later than this after the first."""


def resolve_folder(path: str, revision: str | None = None, *, weights: bool = True, key: str = "model.path") -> Path:
    """The folder of a checkpoint.

    Args:
        path: a folder, or a hub id `owner/name`.
        revision: commit, tag or branch of a hub id; must be None for a folder.
        weights: whether weights are fetched too, or only configuration and tokenizer.
        key: the configuration key that messages name.

    Raises:
        CheckpointError: `path` is neither, has no revision, or cannot be fetched.
    """
    folder = Path(path).expanduser()
    if folder.exists():
        if revision is not None:
            raise CheckpointError(
                f"model.revision={revision!r} has no meaning for the local folder {folder}; leave it out"
            )
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is a file; {key} names a folder with config.json and safetensors")
        return folder
    if not is_hub_id(path):
        raise CheckpointError(f"{key}={path!r} is neither a folder that exists nor a hub id of the form owner/name")
    if revision is None:
        raise CheckpointError(
            f"model.revision is not set for the hub id {path!r}; pin a commit, so that weights cannot change"
        )
    return _fetch(path, revision, [*CONFIG_FILES, *(WEIGHT_FILES if weights else ())], key)


def is_hub_id(path: str) -> bool:
    """Whether `path` has the form `owner/name`."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not path.endswith("/")


def _fetch(repo: str, revision: str, patterns: list[str], key: str) -> Path:
    from huggingface_hub import snapshot_download

    def download() -> str:
        return snapshot_download(repo, revision=revision, allow_patterns=patterns, token=os.environ.get("HF_TOKEN"))

    try:
        return Path(_patiently(download))
    except Exception as error:
        wanted = f"cannot fetch {repo!r} at revision {revision!r}"
        if _retry_after(error) is not None:
            raise CheckpointError(
                f"{wanted}: the hub answers 429 (too many requests) again and again. Try later: files already fetched "
                f"are kept. A token in HF_TOKEN raises the limit, and a local folder needs no hub: {key}=<folder>"
            ) from error
        raise CheckpointError(f"{wanted}: {type(error).__name__}: {error}") from error


def _patiently(download: Callable[[], str]) -> str:
    """Run `download` until it is not refused with 429.

    huggingface_hub itself repeats most requests five times, honouring Retry-After, but not the one that turns a tag or
    a branch into a commit, and in older versions fewer; an attempt here begins where it gave up.
    """
    begun = time.monotonic()
    for attempt in range(1, ATTEMPTS):
        try:
            return download()
        except Exception as error:
            asked = _retry_after(error)
            if asked is None:
                raise
            pause = max(asked, 2.0**attempt)
            if time.monotonic() - begun + pause > PATIENCE_SECONDS:
                raise
            time.sleep(pause)
    return download()


def _retry_after(error: BaseException | None) -> float | None:
    """Seconds that a 429 in the chain of causes asks to wait (0 where it names none); None when there is none."""
    while error is not None:
        response = getattr(error, "response", None)
        if getattr(response, "status_code", None) == 429:
            asked = getattr(response, "headers", {}).get("Retry-After", "")
            return float(asked) if asked.isdigit() else 0.0
        error = error.__cause__ or error.__context__
    return None
