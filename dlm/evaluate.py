"""Measure a model on a task: `python -m dlm.evaluate` (see `--help`).

Composes and checks the configuration and runs an `EvaluationSession`, which is a run of `dlm.predict` with a task's
questions and with judges at its end.
"""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from dlm.cli import command_line
from dlm.evaluation.config import register

TITLE = "Measure a diffusion language model on a task. Without arguments: the bundled demo."
KEYS = """\
  task=gsm8k data.path=file                the task, and the file of its questions
  task.num_shots=4 task.shots_path=file    examples before each question
  data.limit=100                           only the first so many questions
  generation.n=10 checking.k=[1,10]        pass@1 and pass@10 of ten samples
  allow_code_execution=true                run the code that answers are, in a sandbox
  experiment=reproduce/llada_8b_gsm8k      published settings, and the published score beside ours
  run_dir=outputs/evaluate/...             resume a run, or judge it again
  and all keys of python -m dlm.predict"""
EXAMPLES = """\
  python -m dlm.evaluate
  python -m dlm.evaluate task=gsm8k data.path=gsm8k_test.jsonl model=llada_8b_instruct trainer=gpu
  python -m dlm.evaluate task=humaneval data.path=humaneval.jsonl allow_code_execution=true generation.n=10 \\
      generation.temperature=0.8 checking.k=[1,10]
  python -m dlm.evaluate task=jsonl task.checker=exact task.answer_field=answer data.path=mine.jsonl
  python -m dlm.evaluate task=multiple_choice data.path=arc.jsonl data.prompt_field=question
  python -m dlm.evaluate -m algorithm=dual_cache,dinfer_blockwise sampler.threshold=0.7,0.9"""


def main() -> None:
    command_line.main("evaluate", "dlm.evaluate", run, TITLE, KEYS, EXAMPLES, register)


def run(config: DictConfig, overrides: Sequence[str]) -> int:
    """Evaluate what `config` asks for; returns the exit code."""
    from dlm.evaluation.checks import check_evaluate
    from dlm.evaluation.session import EvaluationSession
    from dlm.runs.launch import launched

    check_evaluate(config, overrides)
    with launched(config.run_dir, "evaluate") as launch:
        session = EvaluationSession(config, launch, overrides)
        session.prepare()
        return session.run()


if __name__ == "__main__":
    main()
