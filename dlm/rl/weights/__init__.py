"""New weights for a model in use: checked, received in one of several ways, and set aside while a trainer runs."""

__all__ = ["broadcast", "communicator", "control", "offload", "partial_update", "refit", "update"]
