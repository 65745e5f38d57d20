"""Decoding as a Lightning run: the module, its data, the writer of answers, and the session around them."""

__all__ = ["data", "interrupts", "loggers", "module", "progress", "scoring", "session", "trainer", "writer"]
