"""Models: one packed transformer for all families, its attention and arithmetic, and how checkpoints become one."""

__all__ = [
    "architecture",
    "arithmetic",
    "arrangement",
    "attention",
    "backbone",
    "devices",
    "experts",
    "families",
    "io",
    "lora",
    "mkl",
    "rotary",
    "sharding",
    "sizes",
]
