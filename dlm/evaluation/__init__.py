"""Tasks with questions and checkers: what they ask, how answers are read out of texts, and what the scores mean.

`python -m dlm.evaluate` runs a task: a run of `dlm.predict` (`session`) whose prompts are its questions (`tasks`,
`shots`), and whose predictions are judged at the end (`results`, `checkers`) and summed up (`report`, `metrics`).
Answers are read by `numbers`, `mathematics`, `choices` and `programs`; code runs in `sandbox`, whose processes are
`confined`.

Importing this costs nothing: neither torch nor Lightning is loaded.
"""

__all__ = [
    "checks",
    "config",
    "graders",
    "lm_eval",
    "metrics",
    "report",
    "results",
    "sandbox",
    "session",
    "shots",
    "tasks",
]
