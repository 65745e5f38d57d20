"""Rewards for the demo's questions that its checkpoint was not trained on: they prefer some valid answers to others."""

from __future__ import annotations

import re
from typing import Any

from dlm.demo.tasks import check


def balanced_split(row: dict[str, Any], text: str) -> float:
    """For "Split 12 apples into 2.": how close the parts are, 1 - |a - b| / (a + b); 0 for a wrong answer.

    The checkpoint's training data draws the parts at random, which gives a mean of about one half.
    """
    if not check("split", row["prompt"], text):
        return 0.0
    first, second = map(int, re.findall(r"\d+", text))
    return 1 - abs(first - second) / (first + second)
