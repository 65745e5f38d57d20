"""Regenerate the held-out prompts: `python -m dlm.demo`. They are the same on every machine."""

from __future__ import annotations

from dlm.demo import PROMPTS
from dlm.demo.tasks import write_prompts

write_prompts(PROMPTS)
print(PROMPTS)
