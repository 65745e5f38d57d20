"""Bodies that are small to send and were large to look through, against a server of the demo:

    python -m tests.hostile_bodies [bodies=20]

Of each kind so many are sent at once, while `/health` is asked all the time. Prints, for each kind, the statuses, how
long `/health` took (ms), the processor's seconds for each body, and the server's memory before and what its peak was
above it (MiB); first for a body that is as long and has nothing in it but white space, which shows what the machine and
the sending alone cost. Exits 1 where a body was answered with 5xx or not at all, `/health` took much longer than with
the first kind, or memory grew by more than a few bodies.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from dlm.bench.load.drive import HealthProbe
from dlm.bench.load.figures import percentiles
from tests.running import TIMEOUT
from tests.serving.server import Server, serving

SIZE = int(3.7 * 2**20)
"""Bytes of a body, below the server's limit of 4 MiB."""
HEALTH = 0.1
"""Seconds that 99 % of the answers of `/health` may take, besides three times what they took with the first kind."""
GROWTH = 512.0
"""MiB that the bodies of one kind may take together: they themselves, and what one of them is parsed into."""
PLAIN, CHAT, BATCH = "/v1/completions", "/v1/chat/completions", "/v1/generate_batch"


@dataclass(frozen=True)
class Kind:
    """A way to fill a body: `head`, `piece` again and again, `last`, `tail`."""

    path: str
    head: bytes
    piece: bytes
    last: bytes
    tail: bytes

    def body(self, size: int = SIZE) -> bytes:
        """A body of about `size` bytes."""
        return self.head + self.piece * (size // len(self.piece)) + self.last + self.tail


def messages(piece: bytes, last: bytes) -> Kind:
    return Kind(CHAT, b'{"messages": [', piece, last, b"]}")


def prompt(piece: bytes, last: bytes) -> Kind:
    return Kind(PLAIN, b'{"prompt": [', piece, last, b"]}")


KINDS: Mapping[str, Kind] = {
    "white space": Kind(PLAIN, b'{"prompt": ', b" ", b"", b"{}}"),
    "objects": prompt(b"{},", b"{}"),
    "lists of a token": prompt(b"[1],", b"[1]"),
    "lists of a million tokens": Kind(PLAIN, b'{"prompt": [[', b"1,", b"1", b"]]}"),
    "tokens": prompt(b"1,", b"1"),
    "long tokens": prompt(b"31999,", b"31999"),
    "tokens and a text": prompt(b"31999,", b'"a"'),
    "reals": prompt(b"1.5,", b"1.5"),
    "empty texts": prompt(b'"",', b'""'),
    "texts": prompt(b'"ab",', b'"ab"'),
    "nested lists": prompt(b"[", b"1"),
    "nested objects": Kind(PLAIN, b'{"prompt": "a", "x": ', b'{"a":', b"1", b"}"),
    "digits": Kind(PLAIN, b'{"prompt": "a", "cfg_scale": ', b"9", b"9", b"}"),
    "digits behind a point": Kind(PLAIN, b'{"prompt": "a", "cfg_scale": 0.', b"9", b"9", b"}"),
    "escapes": Kind(PLAIN, b'{"prompt": "', b"\\n", b"", b'"}'),
    "quotes in a text": Kind(PLAIN, b'{"prompt": "', b'\\"', b"", b'"}'),
    "half pairs": Kind(PLAIN, b'{"prompt": "', b"\\ud800", b"", b'"}'),
    "quotes without an end": Kind(PLAIN, b'{"prompt": "', b'\\"', b"", b""),
    "brackets in a text": Kind(PLAIN, b'{"prompt": "', b"[{", b"", b'"}'),
    "unknown fields": Kind(PLAIN, b'{"prompt": "a"', b',"a":1', b"", b"}"),
    "equal fields": Kind(PLAIN, b'{"prompt": "a"', b',"n":1', b"", b"}"),
    "a field that is refused": Kind(PLAIN, b'{"prompt": "a", "guided_choice": [', b"1,", b"1", b"]}"),
    "biases": Kind(PLAIN, b'{"prompt": "a", "logit_bias": {', b'"1":"a",', b'"2":1', b"}}"),
    "stops": Kind(PLAIN, b'{"prompt": "a", "stop": [', b"1,", b"1", b"]}"),
    "messages": messages(b"{},", b"{}"),
    "roles": messages(b'{"role":"king"},', b"{}"),
    "good messages": messages(b'{"role":"user","content":""},', b'{"role":"user","content":""}'),
    "parts": Kind(CHAT, b'{"messages": [{"role": "user", "content": [', b"{},", b"{}", b"]}]}"),
    "tools": Kind(CHAT, b'{"messages": [{"role": "user", "content": "a"}], "tools": [', b"{},", b"{}", b"]}"),
    "prompts": Kind(BATCH, b'{"prompts": [', b"[1],", b"[1]", b"]}"),
}


def seconds_of(server: Server) -> float:
    """The processor's, so far."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(server: Server, what: str) -> float:
    """MiB; `what` is `VmRSS` or `VmHWM`, the peak since `forget_peak`."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines())
    return int(status[what].split()[0]) / 1024


def forget_peak(server: Server) -> None:
    """The peak is counted anew."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


def sent(server: Server, kind: Kind, count: int) -> Counter[int]:
    """Statuses of `count` bodies that are sent at once, each on a connection of its own."""
    body = kind.body()

    def send(_: int) -> int:
        headers = {"Content-Type": "application/json"}
        return httpx.post(server.url + kind.path, content=body, headers=headers, timeout=TIMEOUT).status_code

    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(send, range(count)))


@dataclass(frozen=True)
class Seen:
    """What was seen while bodies of a kind were sent: statuses, seconds that 99 % of the answers of `/health` took, and
    MiB that the peak was above the memory before."""

    name: str
    statuses: Counter[int]
    health: float
    grown: float

    def faults(self, usual: float) -> Iterator[str]:
        """What should not have been; `usual` is `health` of the first kind."""
        yield from (f"{self.name}: {status}" for status in self.statuses if status >= 500)
        limit = HEALTH + 3 * usual
        if self.health > limit:
            yield f"{self.name}: 99 % of /health within {1e3 * self.health:.0f} ms, not {1e3 * limit:.0f}"
        if self.grown > GROWTH:
            yield f"{self.name}: {self.grown:.0f} MiB more"


def attack(server: Server, name: str, count: int) -> Seen:
    """Send bodies of a kind, and say what was seen."""
    forget_peak(server)
    probe, before, used = HealthProbe(server.url), memory_of(server, "VmRSS"), seconds_of(server)
    probe.start()
    statuses = sent(server, KINDS[name], count)
    health, used = probe.finish(), (seconds_of(server) - used) / count
    figures, grown = percentiles(health), memory_of(server, "VmHWM") - before
    print(
        f"{name:<26} {dict(statuses)!s:<14} {1e3 * figures['p50']:>8.1f} {1e3 * figures['p99']:>8.1f} {used:>8.3f} "
        f"{before:>8.0f} {grown:>+8.0f}",
        flush=True,
    )
    return Seen(name, statuses, figures["p99"], grown)


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    given = dict(argument.split("=", 1) for argument in arguments)
    count = int(given.pop("bodies", "20"))
    if given:
        raise SystemExit(f"{', '.join(given)}: known here: bodies=")
    print(f"{'kind':<26} {'statuses':<14} {'p50':>8} {'p99':>8} {'s/body':>8} {'before':>8} {'peak':>8}")
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server:
        seen = [attack(server, name, count) for name in KINDS]
    faults = [fault for one in seen for fault in one.faults(seen[0].health)]
    print("\n".join(f"FAULT {fault}" for fault in faults) or "no fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
