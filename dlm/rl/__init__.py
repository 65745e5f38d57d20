"""Rollouts in a training loop: sample answers, score and replay them with gradients, take new weights.

    rollouts = Rollouts.load("demo")
    batch = rollouts.generate(prompts, params, n=8)
    rollouts.update_weights(module.state_dict(), version=1)

What is named here is imported when it is first used, so that `python -m dlm.rl.grpo --help` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlm.rl.broadcast import send_weights
    from dlm.rl.rollout import Rollout
    from dlm.rl.rollout_func import make_rollout_func
    from dlm.rl.rollouts import Rollouts

__all__ = ["Rollout", "Rollouts", "make_rollout_func", "send_weights"]

_HOMES = {
    "Rollout": "dlm.rl.rollout",
    "Rollouts": "dlm.rl.rollouts",
    "make_rollout_func": "dlm.rl.rollout_func",
    "send_weights": "dlm.rl.broadcast",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
