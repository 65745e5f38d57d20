"""Rollouts in a training loop: sample answers, score and replay them with gradients, take new weights.

rollouts = Rollouts.load("demo")
batch = rollouts.generate(prompts, params, n=8)
rollouts.update_weights(module.state_dict(), version=1)
"""

from dlm.rl.broadcast import send_weights
from dlm.rl.rollout import Rollout
from dlm.rl.rollout_func import make_rollout_func
from dlm.rl.rollouts import Rollouts

__all__ = ["Rollout", "Rollouts", "make_rollout_func", "send_weights"]
