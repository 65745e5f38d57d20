"""The script that both processes run: `python -I start.py judge|program READ WRITE SECONDS MEMORY_MIB [VERDICTS]`."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType


def main() -> None:
    """Run the side that the command line names."""
    package = ModuleType("dlm")  # not the real one, whose import takes other modules and sets variables
    package.__path__ = [os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))]
    sys.modules["dlm"] = package
    side, *numbers = sys.argv[1:]
    sys.argv[1:] = []
    importlib.import_module(f"dlm.evaluation.confined.{side}").main(*map(int, numbers))


if __name__ == "__main__":
    main()
