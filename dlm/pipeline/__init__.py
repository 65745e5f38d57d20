"""Decoding as a Lightning run: the module, its data, the answer writer, and the session around them."""

__all__ = ["data", "interrupts", "loggers", "module", "progress", "scoring", "session", "trainer", "writer"]
