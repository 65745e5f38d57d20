"""Group-relative policy optimisation (GRPO) for masked diffusion models: `python -m dlm.rl.grpo` (see `--help`).

Each step decodes a group of answers to some prompts, rewards them, and raises the log-probability of those that are
better than their group. A diffusion model has no exact log-probability at hand: `dlm.rl.likelihoods` holds the
stand-ins that are published for it.

An entry point with its parts: of `dlm.rl`, this package alone knows Hydra and Lightning.
"""

__all__ = [
    "config",
    "module",
    "objective",
    "optimizer",
    "policy_module",
    "progress",
    "prompts",
    "record",
    "rewards",
    "session",
]
