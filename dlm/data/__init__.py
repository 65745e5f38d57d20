"""Prompt sources: files, the hub and the demo; each row has a stable id."""

__all__ = ["prompt_file", "prompts"]
