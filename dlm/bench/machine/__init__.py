"""The machine under the bench: its peak rates, memory and clock."""

__all__ = ["facts", "memory", "processor", "profile", "rates", "stopwatch"]
