"""What answers of models are made of runs in the sandbox, and what benchmarks ask of them is asked as they ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dlm.evaluation.graders.checkers import checker_of
from dlm.evaluation.sandbox.run import ProgramOutcome, Sandbox
from tests.running import TIMEOUT

SANDBOX = Sandbox(seconds=TIMEOUT, memory_mib=1024)

ORDINARY = {
    "standard library": (
        "import argparse, bisect, calendar, collections, copy, csv, datetime, decimal, difflib, fractions, functools\n"
        "import glob, hashlib, heapq, html, inspect, io, itertools, json, logging, math, numbers, operator, os\n"
        "import pathlib, pickle, pprint, queue, random, re, secrets, shutil, sqlite3, ssl, statistics, string, struct\n"
        "import subprocess, sys, tempfile, textwrap, threading, time, traceback, types, typing, unittest\n"
        "import urllib.request, uuid, xml.etree.ElementTree, zlib, zoneinfo, bz2, lzma, ctypes, multiprocessing\n"
        "import concurrent.futures\n"
        "def f():\n"
        "    return [hashlib.md5(b'x').hexdigest()[:6], len(secrets.token_hex(4)), uuid.uuid4().version,\n"
        "            zlib.decompress(zlib.compress(b'x')),\n"
        "            sqlite3.connect(':memory:').execute('select 1').fetchone(), time.localtime(0).tm_year > 1960,\n"
        "            str(datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo('UTC')))]",
        "assert f() == ['9dd4e4', 8, 4, b'x', (1,), True, '2024-07-01 00:00:00+00:00']",
    ),
    "numpy": (
        "import numpy as np\n"
        "def total(values): return np.array(values).sum()\n"
        "def inverse(matrix): return np.linalg.inv(np.array(matrix)).tolist()\n"
        "def even(value): return value % np.int64(2) == 0",
        "assert total([1, 2.5]) == 3.5\nassert inverse([[2.0, 0.0], [0.0, 4.0]]) == [[0.5, 0.0], [0.0, 0.25]]\n"
        "assert even(4) is True",
    ),
    "threads and pools": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def f(values):\n    with ThreadPoolExecutor(4) as pool: return list(pool.map(lambda v: v * v, values))",
        "assert f(range(5)) == [0, 1, 4, 9, 16]",
    ),
    "asyncio": (
        "import asyncio\nasync def g(x):\n    await asyncio.sleep(0.01)\n    return x + 1\n"
        "async def both(): return await asyncio.gather(g(1), g(2))\ndef f(): return asyncio.run(both())",
        "assert f() == [2, 3]",
    ),
    "time and signals": (
        "import signal, time\ndef ring(*given): raise TimeoutError('late')\n"
        "def f():\n    signal.signal(signal.SIGALRM, ring)\n    signal.setitimer(signal.ITIMER_REAL, 0.01)\n"
        "    try: time.sleep(60)\n    except TimeoutError as error: return str(error)",
        "assert f() == 'late'",
    ),
    "dataclasses and names of types": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom enum import Enum, IntEnum\n"
        "from typing import NamedTuple, get_type_hints\n@dataclass\nclass P:\n    x: int\n    y: list[int]\n"
        "class C(IntEnum):\n    A = 1\nclass N(NamedTuple):\n    a: int\n"
        "def f(x: int) -> str: return get_type_hints(f)['x'].__name__ + str(P(x, [1]).y)\n"
        "def g(): return {C.A: N(2)}",
        "assert f(3) == 'int[1]'\nassert g() == {1: (2,)}",
    ),
    "recursion as deep as Python's": (
        "def f(n): return 0 if n == 0 else 1 + f(n - 1)",
        "assert f(980) == 980\ntry:\n    f(5000)\nexcept RecursionError:\n    pass\nelse:\n    raise AssertionError",
    ),
    "generators and iterators": (
        "from itertools import count\ndef f(n):\n    for i in range(n): yield i\n"
        "def g(x): return map(str, x)\ndef h(): return count(3)\ndef k(d): return d.keys()\n"
        "def z(a, b): return zip(a, b)",
        "assert list(f(3)) == [0, 1, 2]\nassert tuple(g([1])) == ('1',)\nassert next(h()) == 3\n"
        "assert f(3) != [0, 1, 2]\n"
        "assert sorted(k({'a': 1})) == ['a'] and k({'a': 1}) == {'a'}\nassert dict(z('a', 'b')) == {'a': 'b'}\n"
        "assert sum(f(4)) == 6 and set(f(2)) == {0, 1} and [*f(2)] == [0, 1]",
    ),
    "changes in place": (
        "def f(values): values.sort()\ndef g(values, seen): seen.update(values); return seen",
        "values, seen = [3, 1], {}\nassert f(values) is None and values == [1, 3]\n"
        "assert g({1: 2}, seen) is seen == {1: 2}",
    ),
    "classes": (
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, item): self.items.append(item)\n"
        "    def pop(self):\n        if not self.items: raise IndexError('empty')\n        return self.items.pop()\n"
        "    def __len__(self): return len(self.items)\n    def __eq__(self, other): return self.items == other.items",
        "stack, other = Stack(), Stack()\nassert not stack and stack == other\nstack.push(3)\nassert stack != other\n"
        "assert len(stack) == 1 and stack.items == [3] and stack.pop() == 3\n"
        "try:\n    stack.pop()\nexcept IndexError as error:\n    assert str(error) == 'empty'\n"
        "else:\n    raise AssertionError",
    ),
    "functions of functions": (
        "def twice(f): return lambda x: f(f(x))\ndef apply(f, values, **more): return [f(v, **more) for v in values]",
        "assert twice(lambda x: x + 1)(1) == 3\nassert apply(lambda v, by: v * by, [1, 2], by=3) == [3, 6]\n"
        "assert apply(str, [1]) == ['1']",
    ),
    "large values": (
        "def f(n): return list(range(n))\ndef g(n): return 'x' * n\ndef h(n): return 7 ** n",
        "assert f(100_000) == list(range(100_000))\nassert len(g(10**6)) == 10**6\nassert h(20_000) == 7**20_000",
    ),
    "output": (
        "import sys\nprint('x' * 10**6)\ndef f(): print('y'); sys.stderr.write('z'); return 1",
        "assert f() == 1",
    ),
    "prints of the tests": ("def f(): return 1", "print('{}' * 10**5)\nassert f() == 1"),
}


@pytest.mark.parametrize(("program", "tests"), ORDINARY.values(), ids=ORDINARY.keys())
def test_ordinary_programs_pass(program: str, tests: str) -> None:
    assert SANDBOX.run(program, tests) == ProgramOutcome(True)


HUMANEVAL: dict[str, tuple[dict[str, Any], str, str]] = {
    "helper of the prompt in the test": (
        {
            "prompt": "import math\n\n\ndef poly(xs, x):\n    return sum([c * math.pow(x, i) for i, c in "
            'enumerate(xs)])\n\n\ndef find_zero(xs):\n    """ Find x such that poly(x) = 0. """\n',
            "entry_point": "find_zero",
            "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    import math\n    import random\n"
            "    rng = random.Random(42)\n    import copy\n    for _ in range(5):\n"
            "        coeffs = [rng.randint(-9, 9), rng.randint(1, 9)]\n"
            "        solution = candidate(copy.deepcopy(coeffs))\n"
            "        assert math.fabs(poly(coeffs, solution)) < 1e-4\n",
        },
        "    return -xs[0] / xs[1]\n",
        "    return 0.1234\n",
    ),
    "decoder that is tested by its encoder": (
        {
            "prompt": "def encode(s):\n    return s[1:] + s[:1]\n\n\ndef decode(s):\n    '''Undo encode.'''\n",
            "entry_point": "decode",
            "test": "def check(candidate):\n    assert all(candidate(encode(text)) == text for text in ('abc', ''))\n",
        },
        "    return s[-1:] + s[:-1]\n",
        "    return s\n",
    ),
    "tests of many cases": (
        {
            "prompt": "from typing import List\n\n\ndef first(xs: List[int]) -> int:\n    '''The first.'''\n",
            "entry_point": "first",
            "test": "import numpy as np\n\ndef is_floats(x) -> bool:\n    if isinstance(x, float):\n"
            "        return True\n    return isinstance(x, np.ndarray) and x.dtype == np.float64\n\n"
            "def assertion(out, exp, atol):\n    exact_match = out == exp\n    if atol == 0 and is_floats(exp):\n"
            "        atol = 1e-6\n    if not exact_match and atol != 0:\n"
            "        np.testing.assert_allclose(out, exp, atol=atol)\n    else:\n        assert exact_match\n\n"
            "def check(candidate):\n    inputs = [[[1, 2]], [[0.1, 5]]]\n"
            "    results = [1, 0.1]\n    for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
            "        assertion(candidate(*inp), exp, 0)\n",
        },
        "    return xs[0]\n",
        "    return xs[1]\n",
    ),
}


@pytest.mark.parametrize(("row", "right", "wrong"), HUMANEVAL.values(), ids=HUMANEVAL.keys())
def test_rows_of_humaneval(row: dict[str, Any], right: str, wrong: str) -> None:
    checker = checker_of("humaneval", SANDBOX)
    assert checker.check(row, None, right).reason == ""
    assert checker.check(row, None, right).right
    assert not checker.check(row, None, wrong).right


TREE = (
    "class Node:\n    def __init__(self, data):\n        self.data, self.left, self.right = data, None, None\n"
    "root = Node(1)\nroot.left = Node(2)\nroot.left.left = Node(3)\ndef chain(n):\n    first = Node(n)\n"
    "    if n: first.left = chain(n - 1)\n    return first"
)
HEIGHT = "def height(node):\n    return 0 if node is None else 1 + max(height(node.left), height(node.right))\n"
MBPP: dict[str, tuple[dict[str, Any], str, str]] = {
    "plain": ({"test_list": ["assert f(1, 2) == 3"]}, "def f(a, b): return a + b", "def f(a, b): return a - b"),
    "of a set": (
        {"test_list": ["assert set(f((1, 2), (2, 3))) == set((2,))"]},
        "def f(a, b): return tuple(set(a) & set(b))",
        "def f(a, b): return a",
    ),
    "a module of the setup": (
        {"test_list": ["assert math.isclose(f(10), 0.1, rel_tol=0.001)"], "test_imports": ["import math"]},
        "def f(a): return 1 / a",
        "def f(a): return a",
    ),
    "a module of the answer": (
        {"test_list": ["assert math.isclose(f(10), 0.1, rel_tol=0.001)"]},
        "import math\ndef f(a): return 1 / a",
        "import math\ndef f(a): return a",
    ),
    "a class of the answer": (
        {"test_list": ["assert longest([Pair(5, 24), Pair(15, 25)], 2) == 9"]},
        "class Pair(object):\n    def __init__(self, a, b): self.a, self.b = a, b\n"
        "def longest(pairs, n): return min(pair.b for pair in pairs) - pairs[1].a",
        "class Pair(object):\n    def __init__(self, a, b): self.a, self.b = a, b\ndef longest(pairs, n): return n",
    ),
    "a class and an object of the setup": (
        {"test_list": ["assert (height(root)) == 3"], "test_setup_code": TREE},
        HEIGHT,
        HEIGHT.replace("0 if", "1 if"),
    ),
    "a function of the setup that makes objects": (
        {"test_list": ["assert height(chain(4)) == 5"], "test_setup_code": TREE},
        HEIGHT,
        HEIGHT.replace("0 if", "1 if"),
    ),
    "a class of the tests": (
        {"test_list": [TREE, "assert height(root) == 3"]},
        HEIGHT,
        HEIGHT.replace("0 if", "1 if"),
    ),
    "the name of a built-in function": (
        {"test_list": ["assert sum(10, 15) == 6", "assert sum(100, 150) == 93"]},
        "def sum(a, b):\n    return 1 + a + b if False else {25: 6, 250: 93}[a + b]",
        "def sum(a, b): return 7",
    ),
}


@pytest.mark.parametrize(("row", "right", "wrong"), MBPP.values(), ids=MBPP.keys())
def test_rows_of_mbpp(row: dict[str, Any], right: str, wrong: str) -> None:
    checker = checker_of("mbpp", SANDBOX)
    assert checker.check(row, None, right).reason == ""
    assert checker.check(row, None, right).right
    assert not checker.check(row, None, wrong).right
    assert not checker.check(row, None, "def other(): pass").right


def test_the_example_of_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    exec(example.replace("seconds=10", f"seconds={TIMEOUT}"), {})
    assert capsys.readouterr().out == "True \n"


def test_tests_that_are_no_python_judge_nothing_right() -> None:
    assert SANDBOX.run("def f(): return 1", "assert f() ==").reason.startswith("SyntaxError")
    assert SANDBOX.run("def f(): return 1", "assert f() == 1", "import absent").reason.startswith("ModuleNotFoundError")
