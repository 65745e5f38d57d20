"""One decoder over several processes, each with a shard of the model."""

__all__ = ["commands", "decoder"]
