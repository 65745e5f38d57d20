"""The trainers of others: TRL and NeMo-RL."""

__all__ = ["nemo", "rollout_func", "trl"]
