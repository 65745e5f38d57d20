"""Routes, grouped by client, and their responses."""

__all__ = [
    "admin",
    "answers",
    "chunks",
    "echo",
    "openai",
    "polling",
    "probes",
    "sequence_logprobs",
    "sglang",
    "stream",
    "trl",
    "trl_channel",
]
