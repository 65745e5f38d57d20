"""Group-relative policy optimisation (GRPO) for masked diffusion models: `python -m dlm.rl.grpo` (see `--help`).

Each step decodes a group of answers to some prompts, rewards them, and raises the log-probability of those that are
better than their group. A diffusion model has no tractable log-probability: `dlm.rl.likelihoods` has the published
surrogates for it.

An entry point and its parts: the only package of `dlm.rl` that depends on Hydra and Lightning.
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
