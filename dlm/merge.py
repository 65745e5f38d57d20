"""Put a run's answers together: `python -m dlm.merge run_dir=<folder>` (see `--help`).

`python -m dlm.predict` does this itself; job arrays, where no task knows which is the last, need it said.
"""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from dlm.cli import command_line
from dlm.errors import ConfigError

TITLE = "Put the shards of a run together as predictions.jsonl, or say which prompts are missing."
KEYS = "  run_dir=folder                           the run's folder, as predict printed it"
EXAMPLES = "  python -m dlm.merge run_dir=outputs/predict/20260101_120000-1a2b"


def main() -> None:
    command_line.main("merge", "dlm.merge", run, TITLE, KEYS, EXAMPLES)


def run(config: DictConfig, overrides: Sequence[str]) -> int:
    """Merge; returns the exit code."""
    from pathlib import Path

    from dlm.runs.merging import merge
    from dlm.runs.run_folder import RunFolder

    if OmegaConf.is_missing(config, "run_dir"):
        raise ConfigError("run_dir is not set: write run_dir=<folder>")
    folder = RunFolder(Path(config.run_dir))
    merged = merge(folder, folder.begun_with())
    refused = f", {merged.refused} of them errors" if merged.refused else ""
    print(f"{merged.path}: {merged.rows} rows for {merged.prompts} prompts{refused}")
    merged.require_answers()
    return 0


if __name__ == "__main__":
    main()
