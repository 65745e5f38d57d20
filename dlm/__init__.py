"""Decoding for diffusion language models: exact, batched, fast."""

__version__ = "0.1.0"
