"""`python -m tests.processors [pytest arguments]`: the tests of bits as on other processors."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.processors.settings import changed, digests, environment, settings


def main() -> int:
    arguments = sys.argv[1:] or ["tests"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-m", "bits and not long"]
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        plain = digests({})
        for name, chosen in {"as it is": {}, **settings(Path(folder))}.items():
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
