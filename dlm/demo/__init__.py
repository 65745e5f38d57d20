"""The bundled demo: a tiny trained checkpoint and prompts held out of its training; `dlm.demo.tasks` checks answers.

Cheap to import.
"""

from dlm._paths import DEMO_CHECKPOINT as CHECKPOINT
from dlm._paths import DEMO_PROMPTS as PROMPTS

__all__ = ["CHECKPOINT", "PROMPTS"]
