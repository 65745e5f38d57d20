"""Chat templates: programs from a checkpoint's author, run within bounds of time and memory."""

from __future__ import annotations

from dlm.chat.budget import TemplateLimit
from dlm.chat.template import ChatTemplate

__all__ = ["ChatTemplate", "TemplateLimit"]
