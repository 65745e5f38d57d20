"""The bundled demo: a tiny trained checkpoint and prompts held out of its training; `dlm.demo.tasks` checks answers.

Importing this costs nothing.
"""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""Folder of the checkpoint and its tokenizer, in LLaDA's format."""

PROMPTS = Path(__file__).parent / "prompts.jsonl"
"""The held-out prompts, rows of `{"id", "family", "prompt"}`."""

__all__ = ["CHECKPOINT", "PROMPTS"]
