"""The program's process: runs a program, then its functions as the tests call them.

All it gets to see of the tests are the arguments of these calls, and nothing it sends is taken as a verdict.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import NoReturn

from dlm.evaluation.sandbox.peer import Ended, Peer
from dlm.evaluation.sandbox.rights import confine, limit

NAME = "answer"
"""Name of the program's module; not `__main__`, so that code guarded by it does not run."""
FRAMES = 30
"""Added to the recursion limit: room for the calls between the interpreter's start and the program's function."""


def main(reading: int, writing: int, seconds: int, memory_mib: int) -> NoReturn:
    """Run the program the judge sends. The first two arguments are descriptors."""
    peer = Peer(os.fdopen(reading, "rb"), os.fdopen(writing, "wb"), lambda value: True)
    try:
        limit(seconds, memory_mib)
        confine()
        confined, reason = True, ""
    except (OSError, RuntimeError, ValueError) as error:
        confined, reason = False, str(error)
    try:
        peer.send({"confined": confined, "reason": reason})
        module = ModuleType(NAME)
        peer.export(module)  # the first one exported: the judge refers to it as 0
        sys.modules[NAME] = module
        sys.setrecursionlimit(sys.getrecursionlimit() + FRAMES)
        program = peer.receive()["program"]
        try:
            exec(compile(program, "answer.py", "exec"), module.__dict__)
        except BaseException as error:
            peer.send({"failed": f"{type(error).__name__}: {error}"[:300]})
            os._exit(0)
        peer.send({"names": [name for name in module.__dict__ if isinstance(name, str)]})
        peer.serve()
    except Ended:
        pass
    os._exit(0)
