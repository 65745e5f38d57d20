"""Decode prompts: `python -m dlm.predict` (see `--help`).

Composes and checks the configuration, builds the parts, runs the Trainer, merges, and says what was done.
"""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from dlm.cli import command_line

TITLE = "Decode prompts with a diffusion language model. Without arguments: the bundled demo."
KEYS = """\
  model=checkpoint model.path=folder       a checkpoint of yours, or a hub id with model.revision=commit
  model.dcp_path=folder                    weights of a torch.distributed checkpoint, with model.base_model=folder
  model.adapter_path=folder                a LoRA adapter, merged at load
  model.drafter_adapter_path=folder        a LoRA adapter for the drafts of algorithm=linear_spec
  algorithm=auto                           engine and sampler of the model family's own algorithm
  data.path=file                           prompts, with data=jsonl
  generation.gen_length=128                length of an answer, in tokens
  generation.temperature=0.7               0 takes the most probable token
  sampler.threshold=0.8                    lower is faster and less exact
  decoder.max_num_seqs=32                  sequences decoded at once
  trainer=ddp trainer.devices=2            several processes
  run_dir=outputs/predict/...              resume a run"""
EXAMPLES = """\
  python -m dlm.predict
  python -m dlm.predict model=llada_8b_instruct data=jsonl data.path=prompts.jsonl trainer=gpu
  python -m dlm.predict algorithm=dinfer_hierarchy
  python -m dlm.predict engine=full sampler=fixed generation.steps=64
  torchrun --nproc-per-node=8 -m dlm.predict trainer=ddp data=jsonl data.path=prompts.jsonl"""


def main() -> None:
    command_line.main("predict", "dlm.predict", run, TITLE, KEYS, EXAMPLES)


def run(config: DictConfig, overrides: Sequence[str]) -> int:
    """Decode what `config` asks for; returns the exit code."""
    from dlm.config.checks import check_predict
    from dlm.pipeline.session import Session
    from dlm.runs.launch import launched

    check_predict(config)
    with launched(config.run_dir, "predict") as launch:
        session = Session(config, launch, overrides)
        session.prepare()
        return session.run()


if __name__ == "__main__":
    main()
