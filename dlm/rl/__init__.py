"""Rollouts for a training loop: sample answers, score and replay them with gradients, update the weights.

    rollouts = Rollouts.load("demo")
    batch = rollouts.generate(prompts, params, n=8)
    rollouts.update_weights(module.state_dict(), version=1)

Names are imported on first use, so that `python -m dlm.rl.grpo --help` does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlm._lazy import exports

if TYPE_CHECKING:
    from dlm.rl.integrations.rollout_func import make_rollout_func
    from dlm.rl.rollout import Rollout
    from dlm.rl.rollouts import Rollouts
    from dlm.rl.weights.broadcast import send_weights

__all__ = ["Rollout", "Rollouts", "make_rollout_func", "send_weights"]

__getattr__, __dir__ = exports(
    __name__,
    {
        "Rollout": "dlm.rl.rollout",
        "Rollouts": "dlm.rl.rollouts",
        "make_rollout_func": "dlm.rl.integrations.rollout_func",
        "send_weights": "dlm.rl.weights.broadcast",
    },
)
