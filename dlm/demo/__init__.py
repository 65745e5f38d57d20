"""The bundled demo: a tiny trained checkpoint, prompts held out of its training, and a checker of its answers.

Importing this costs nothing: neither torch nor transformers is loaded.
"""

from __future__ import annotations

from pathlib import Path

from dlm.demo.tasks import check

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""Folder of the checkpoint and its tokenizer, in LLaDA's format."""

PROMPTS = Path(__file__).parent / "prompts.jsonl"
"""The held-out prompts, rows of `{"id", "family", "prompt"}`."""

__all__ = ["CHECKPOINT", "PROMPTS", "check"]
