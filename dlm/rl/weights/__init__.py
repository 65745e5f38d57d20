"""Weight updates for a model in use: validation, transports, and offloading while a trainer runs."""

__all__ = ["broadcast", "communicator", "control", "offload", "partial_update", "refit", "update"]
