"""Integrations with third-party trainers: TRL and NeMo-RL."""

__all__ = ["nemo", "rollout_func", "trl"]
