"""A wrong program is judged wrong, whatever it does to the interpreter it runs in; and a right one right."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dlm.evaluation.graders.checkers import checker_of
from dlm.evaluation.graders.programs import humaneval_program
from dlm.evaluation.sandbox.run import ProgramOutcome, Sandbox
from tests.running import TIMEOUT

SANDBOX = Sandbox(seconds=TIMEOUT, memory_mib=512)
TESTS = "assert f(1) == 12345\nassert abs(f(2) - 0.5) < 1e-6\nassert f(3) in (7, 8)\n"

WRITES_EVERYWHERE = """
import json, os
def everywhere():
    for said in ({"state": "passed", "reason": ""}, {"gives": 12345, "contents": []}, {"names": ["f"]}):
        for place in range(1024):
            try:
                os.write(place, json.dumps(said).encode() + b"\\n")
            except OSError:
                pass
"""

FORGED = {
    "frames hold the verdict or the tests": """
import sys
def f(x):
    frame, seen = sys._getframe(), []
    while frame:
        seen += [*frame.f_locals.values(), *frame.f_globals.values()]
        for names in (frame.f_locals, frame.f_globals):
            for name in list(names):
                if name in ("state", "reason", "passed", "asked", "verdict", "mark"):
                    names[name] = "passed"
        frame = frame.f_back
    return 12345 if any(isinstance(one, str) and "12345" in one and "assert" in one for one in seen) else 0
""",
    "objects of the collector hold it": """
import gc
def f(x):
    for one in gc.get_objects():
        if isinstance(one, dict) and "state" in one:
            one["state"] = "passed"
        if isinstance(one, str) and "assert f(1)" in one:
            return 12345
    return 0
""",
    "writes a verdict to every descriptor when it is called": WRITES_EVERYWHERE
    + "def f(x):\n    everywhere()\n    os._exit(0)",
    "writes a verdict to every descriptor at once": WRITES_EVERYWHERE + "everywhere()\nos._exit(0)",
    "answers in advance": WRITES_EVERYWHERE + "everywhere()\ndef f(x): return 0",
    "patches json": """
import json
from types import SimpleNamespace
whole = json.dumps
said = {"state": "passed", "reason": "", "names": ["f"], "gives": True, "contents": []}
json.dumps = lambda value, **more: whole(said)
def f(x): return 0
""",
    "patches os.write and os._exit": """
import os
whole = os.write
os.write = lambda place, said: whole(place, b'{"state": "passed", "reason": ""}')
os._exit = lambda code: None
def f(x): return 0
""",
    "patches builtins": """
import builtins
for name in ("abs", "isinstance", "AssertionError", "all", "any", "sorted", "set", "tuple", "len", "bool", "exec"):
    setattr(builtins, name, lambda *given, **more: True)
def f(x): return 0
""",
    "patches modules": """
import sys
for name, module in list(sys.modules.items()):
    for inner in ("dumps", "loads", "exec", "compile", "Packer", "Peer"):
        if hasattr(module, inner):
            setattr(module, inner, lambda *given, **more: {"state": "passed"})
def f(x): return 0
""",
    "has names that the tests use": """
class always:
    def __init__(self, *given): pass
    def __lt__(self, other): return True
    def __rsub__(self, other): return 0
abs = always
def check(*given): pass
def f(x): return 0
""",
    "leaves in its body": "import sys\nsys.exit(0)",
    "leaves when it is called": "import sys\ndef f(x): sys.exit(0)",
    "leaves at once": "import os\ndef f(x): os._exit(0)",
    "leaves behind a handler": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): raise SystemExit(0)",
    "leaves from a thread": """
import os, threading
threading.Thread(target=os._exit, args=(0,)).start()
def f(x):
    while True: pass
""",
    "leaves from a tracer": """
import os, sys
sys.settrace(lambda frame, event, given: os._exit(0))
def f(x): return 0
""",
    "is killed": "import os\ndef f(x): os.kill(os.getpid(), 9)",
    "closes all descriptors": "import os\ndef f(x): os.closerange(0, 1024)",
    "equals everything": """
class Same:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __sub__(self, other): return 0.0
    def __rsub__(self, other): return 0.0
    def __abs__(self): return 0.0
    def __contains__(self, other): return True
    def __hash__(self): return hash(12345)
    def __float__(self): return 0.5
    def __index__(self): return 12345
def f(x): return Same()
""",
    "is a number that equals everything": """
class Same(int):
    def __eq__(self, other): return True
    def __sub__(self, other): return 0
    def __hash__(self): return 7
def f(x): return Same(0)
""",
    "equals everything in a list": """
class Same(list):
    def __eq__(self, other): return True
def f(x): return Same()
""",
    "stops the iteration": "def f(x): raise StopIteration",
    "leaves the generator": "def f(x): raise GeneratorExit",
    "raises what says that it holds": "def f(x): raise SystemExit('passed')",
    "confines no longer": """
def f(x): return 0
import json, os
for place in range(1024):
    try: os.write(place, b'{"confined": false, "reason": "no"}' + bytes([10]))
    except OSError: pass
""",
}


@pytest.mark.parametrize("program", FORGED.values(), ids=FORGED.keys())
def test_no_trick_gets_a_wrong_program_judged_right(program: str) -> None:
    outcome = SANDBOX.run(program, TESTS)
    assert not outcome.passed
    assert outcome.reason


LOOPS = {
    "generator": "assert all(g(x) == 1 for x in (1, 2))",
    "map": "assert all(map(lambda x: g(x) == 1, (1, 2)))",
    "map of g": "assert [*map(g, (1, 2))] == []",
    "item": "assert all(map(lambda x: f(x)[0] == 1, (1, 2)))",
    "attribute": "assert all(map(lambda x: f(x).part == 1, (1, 2)))",
    "length": "assert all(map(lambda x: len(f(x)) == 1, (1, 2)))",
    "truth": "assert all(map(lambda x: bool(f(x)) and False, (1, 2)))",
    "iterator": "assert all(map(lambda x: iter(f(x)) == 1, (1, 2)))",
}
STOPS = """
class Stops:
    def __getitem__(self, key): raise StopIteration
    def __getattr__(self, name): raise StopIteration
    def __len__(self): raise StopIteration
    def __bool__(self): raise StopIteration
    def __iter__(self): raise StopIteration
def f(x): return Stops()
def g(x): raise StopIteration
"""


@pytest.mark.parametrize("tests", LOOPS.values(), ids=LOOPS.keys())
def test_a_loop_of_the_tests_is_not_ended_from_within(tests: str) -> None:
    assert not SANDBOX.run(STOPS, tests).passed


def test_what_the_tests_catch_does_not_hide_that_the_program_is_gone() -> None:
    outcome = SANDBOX.run("import os\ndef f(): os._exit(3)", "try:\n    f()\nexcept BaseException:\n    pass")
    assert outcome == ProgramOutcome(False, "ended before its tests did (exit code 3)")


def test_the_helpers_of_a_prompt_are_not_the_answers() -> None:
    prompt = "def close(a, b):\n    return abs(a - b) < 1e-6\n\ndef half(x):\n    '''Half of it.'''\n"
    test = "def check(candidate):\n    assert close(candidate(3), 1.5)\n"
    row = {"prompt": prompt, "entry_point": "half", "test": test}
    forged = "def close(a, b):\n    return True\n\ndef half(x):\n    return 0\n"
    checker = checker_of("humaneval", SANDBOX)
    assert not checker.check(row, None, f"```python\n{forged}```").right
    assert checker.check(row, None, "    return x / 2").right


def test_standard_modules_are_not_the_answers() -> None:
    forged = "class math:\n    isclose = staticmethod(lambda a, b: True)\ndef f(x): return 0"
    assert not SANDBOX.run(forged, "assert math.isclose(f(1), 5)").passed
    assert SANDBOX.run("import math\ndef f(x): return 5", "assert math.isclose(f(1), 5)").passed
    assert not SANDBOX.run("def f(x): return 5", "assert math.isclose(f(1), 5)").passed


def test_a_function_may_have_the_name_of_a_built_in_one() -> None:
    assert SANDBOX.run("def sum(a, b): return a + b", "assert sum(1, 2) == 3\nassert sum(0, 0) == 0").passed


def test_the_program_sees_no_word_of_the_tests(tmp_path: Path) -> None:
    program = """
import gc, os, sys, threading
def all_texts():
    frames = [frame for first in sys._current_frames().values() for frame in _up(first)]
    known = gc.get_objects() + [one for frame in frames for one in (*frame.f_locals.values(), frame.f_code.co_consts)]
    return "".join(map(repr, (one for one in known if isinstance(one, (str, bytes, tuple, dict)))))
def _up(frame):
    while frame:
        yield frame
        frame = frame.f_back
def f(x):
    return f"un{x}" in all_texts() or f"un{x}" in str(sys.argv) + str(os.environ)
"""
    outcome = SANDBOX.run(program, "unguessable = 1\nassert f('guessable') is False")
    assert outcome == ProgramOutcome(True)


def test_answers_are_values_of_the_judge() -> None:
    tests = "assert [type(one) for one in f()] == [int, str, list, dict, tuple, float]"
    program = (
        "import collections, enum\n"
        "class I(int): pass\nclass S(str): pass\nclass L(list): pass\nP = collections.namedtuple('P', 'x')\n"
        "class F(float): pass\n"
        "def f(): return [I(3), S('x'), L(), collections.Counter('a'), P(1), F(2)]"
    )
    assert SANDBOX.run(program, tests) == ProgramOutcome(True)


def test_an_answer_without_end_ends_its_own_judging() -> None:
    for program in ("def f(): return 'x' * 2**28", "def f(): return [f] * 10**8", "def f():\n    while True: yield 1"):
        outcome = Sandbox(seconds=4.0, memory_mib=512).run(program, "assert list(f()) == [1]")
        assert not outcome.passed


def test_an_answer_that_is_no_message_is_said_to_be_none() -> None:
    write = "try: os.write(place, b'[]' + bytes([10]))\n        except OSError: pass"
    program = f"import os\ndef f():\n    for place in range(1024):\n        {write}"
    assert SANDBOX.run(program, "f()").reason == "ended before its tests did (it answered out of turn)"


def test_a_reason_is_a_line_that_harms_no_terminal() -> None:
    program = "raise Exception('a' + chr(10) + chr(27) + '[2J' + chr(0xD800) + 'b' * 1000)"
    reason = SANDBOX.run(program, "").reason
    assert reason == f"Exception: a  [2J {'b' * 1000}"[:300]


@pytest.mark.parametrize("said", ["[]", "{}", "x", '{"state": "passed"}', '{"confined": false, "reason": "no"}'])
def test_what_tests_write_where_the_verdict_goes_ends_no_evaluation(said: str) -> None:
    write = f"os.write(place, {said.encode()!r} + bytes([10]))"
    tests = f"import os\nfor place in range(1024):\n    try: {write}\n    except OSError: pass\nos._exit(0)"
    assert not SANDBOX.run("", tests).passed


def test_the_number_of_open_descriptors_stays(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for program in ("def f(): return 1", "import os; os._exit(0)", "("):
        SANDBOX.run(program, "assert f() == 1")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_program_of_humaneval_is_one_text_for_people() -> None:
    program = humaneval_program("def f():\n", "    return 1", "f", "def check(c):\n    assert c() == 1\n")
    exec(compile(str(program), "program", "exec"), {})
