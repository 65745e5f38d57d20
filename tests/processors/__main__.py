"""`python -m tests.processors [--only WORDS] [pytest arguments]`: the tests of bits as on other processors.

`--only Intel` takes the settings whose names contain the word.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.processors.settings import changed, digests, environment, settings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.processors", allow_abbrev=False)
    parser.add_argument("--only", default="", metavar="WORDS", help="settings whose names contain this")
    options, arguments = parser.parse_known_args()
    arguments = arguments or ["tests"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-m", "bits and not long"]
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        plain = digests({})
        known = {"as it is": {}, **settings(Path(folder))}
        taken = {name: chosen for name, chosen in known.items() if options.only in name}
        if not taken:
            parser.error(f"no setting's name contains {options.only!r}; there are {', '.join(known)}")
        for name, chosen in taken.items():
            what = changed(chosen, plain) if chosen else ["nothing to compare with"]
            if not what:
                print(f"{name}: changes nothing here", flush=True)
                continue
            done = subprocess.run([*pytest, *arguments], env=environment(chosen), capture_output=True, text=True)
            lines = done.stdout.strip().splitlines()
            print(f"{name}: changes {', '.join(what)}: {lines[-1] if lines else done.stderr}", flush=True)
            for line in lines:
                if re.match("FAILED|ERROR", line):
                    print(f"  {line}", flush=True)
            failed |= done.returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
