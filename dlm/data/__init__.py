"""Where prompts come from: files, the hub, the demo; each row with a stable id."""

__all__ = ["prompt_file", "prompts"]
