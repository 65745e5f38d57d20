"""Train a policy with GRPO: `python -m dlm.rl.grpo` (see `--help`)."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from dlm.cli import command_line

TITLE = "Train a diffusion language model with GRPO: make answers that beat their group more likely."
KEYS = """\
  model=checkpoint model.path=folder       what to train
  data=jsonl data.path=file                prompts; the last validation.prompts are held out
  reward=checker reward.checker=number     1 for a correct answer (checkers of dlm.evaluate), else 0
  reward=function reward.path=module:name  your own function of the row and the answer's text
  likelihood=d1_onestep                    log-probability surrogate: d1_onestep, coupled, step_map, ...
  steps=200 prompts_per_step=8 group_size=8
  generation.temperature=1.0               how answers are decoded: dlm.SamplingParams
  objective.kl=0.04                        weight of the divergence from the initial policy
  lora.rank=16 optimizer.lr=1e-3           train an adapter instead of the weights
  rollout_dtype=bfloat16                   decode with a copy of the weights in this dtype
  trainer=ddp trainer.devices=2            several processes
  run_dir=outputs/grpo/...                 resume a run"""
EXAMPLES = """\
  python -m dlm.rl.grpo experiment=demo_grpo
  python -m dlm.rl.grpo -m experiment=demo_grpo seed=0,1,2
  python -m dlm.rl.grpo model=checkpoint model.path=folder data=jsonl data.path=gsm8k_train.jsonl \\
      data.prompt_field=question reward=checker reward.checker=number reward.answer_field=answer \\
      trainer=ddp precision=bf16-mixed rollout_dtype=bfloat16"""


def main() -> None:
    command_line.main("grpo", "dlm.rl.grpo", run, TITLE, KEYS, EXAMPLES, register)


def register() -> None:
    """Register the schemas; they mirror classes that need torch, so it is imported here."""
    from dlm.rl.grpo import config

    config.register()


def run(config: DictConfig, overrides: Sequence[str]) -> int:
    """Train as configured; returns the exit code."""
    from dlm.rl.grpo.config import check_grpo

    check_grpo(config)
    from dlm.rl.grpo.session import GrpoSession
    from dlm.runs.launch import launched

    with launched(config.run_dir, "grpo") as launch:
        return GrpoSession(config, launch, overrides).run()


if __name__ == "__main__":
    main()
