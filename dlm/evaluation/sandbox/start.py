"""The script each process runs: `python -I start.py judge|program READ WRITE SECONDS MEMORY_MIB [VERDICTS]`."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType


def main() -> None:
    """Run the side named on the command line."""
    package = ModuleType("dlm")  # a stand-in: importing the real package loads more and sets environment variables
    package.__path__ = [os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))]
    sys.modules["dlm"] = package
    side, *numbers = sys.argv[1:]
    sys.argv[1:] = []
    importlib.import_module(f"dlm.evaluation.sandbox.{side}").main(*map(int, numbers))


if __name__ == "__main__":
    main()
