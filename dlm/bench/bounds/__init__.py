"""What a forward must cost at least on a machine, and what the reference loop must."""

__all__ = ["ceiling", "floor", "forwards"]
