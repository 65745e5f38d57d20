"""Train a checkpoint in LLaDA's format: `python -m dlm.train` (see `--help`)."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from dlm.cli import command_line
from dlm.errors import ConfigError
from dlm.training.config import register_training_schema

TITLE = "Train or fine-tune a diffusion language model with the masked-diffusion loss."
KEYS = """\
  output=folder                            where the checkpoint and its log go
  model.path=folder                        go on from a checkpoint; without it a new model is made
  data.path=file                           JSON lines of {"prompt", "answer"}; without it the demo's tasks
  data.gen_lengths=[64]                    masked positions behind the prompt
  trainer.max_steps=1000                   optimizer steps"""
EXAMPLES = """\
  python -m dlm.train experiment=demo
  python -m dlm.train experiment=demo_smoke output=outputs/smoke
  python -m dlm.train model.path=folder data.path=pairs.jsonl trainer.max_steps=1000 output=outputs/tuned"""


def main() -> None:
    command_line.main("train", "dlm.train", run, TITLE, KEYS, EXAMPLES, register_training_schema)


def run(config: DictConfig, overrides: Sequence[str]) -> int:
    """Train what `config` asks for; returns the exit code."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError("; ".join(f"{key} is not set: write {key}=<value>" for key in missing))
    from dlm.training.run import train

    folder = train(config, command_line.quoted(["python", "-m", "dlm.train", *overrides]))
    print(f"checkpoint: {folder}")
    return 0


if __name__ == "__main__":
    main()
