"""Keys and values that outlive a forward: the arena, and what samples of one prompt share of it."""

__all__ = ["arena", "sharing"]
