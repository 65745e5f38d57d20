"""Routes by whose clients they serve, and what they answer."""

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
