"""Query a server with `requests`: an answer, several at once, and submit now to fetch later.

    python -m dlm.serve &                              # or launch/connect.sh JOB_ID
    python launch/examples/requests_client.py "What is 17 plus 25?"

The server's address is DLM_BASE_URL (http://127.0.0.1:8000/v1), its key DLM_API_KEY. Needs `pip install requests`.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests

URL = os.environ.get("DLM_BASE_URL", "http://127.0.0.1:8000/v1").rstrip("/")
TIMEOUT = (5, 310)
"""Seconds to connect, and to wait for an answer: a little longer than the server's own request_timeout."""


def main(question: str) -> int:
    with requests.Session() as session:
        if key := os.environ.get("DLM_API_KEY"):
            session.headers["Authorization"] = f"Bearer {key}"
        try:
            print(f"answer: {ask(session, question)}")
            batch(session, [question, "Sort 7 3 12.", "Capital of France?"])
            poll(session, question)
        except requests.RequestException as error:
            reply = error.response
            print(f"{URL}: {error}{f': {reply.text}' if reply is not None else ''}", file=sys.stderr)
            return 1
    return 0


def call(session: requests.Session, method: str, path: str, **body: Any) -> Any:
    """One request; waits and retries while the server's queue is full."""
    while True:
        reply = session.request(method, f"{URL}{path}", json=body or None, timeout=TIMEOUT)
        if reply.status_code != 429:
            reply.raise_for_status()
            return reply.json()
        time.sleep(float(reply.headers.get("Retry-After", 1)))


def ask(session: requests.Session, question: str) -> str:
    """One answer from the chat route."""
    messages = [{"role": "user", "content": question}]
    answer = call(session, "POST", "/chat/completions", messages=messages, max_tokens=64, temperature=0)
    text: str = answer["choices"][0]["message"]["content"]
    return text


def batch(session: requests.Session, questions: list[str]) -> None:
    """Several at once: the server decodes them together, and each gets what it would get alone."""
    with ThreadPoolExecutor(len(questions)) as pool:
        for question, text in zip(questions, pool.map(lambda one: ask(session, one), questions), strict=True):
            print(f"batch:  {question} -> {text}")


def poll(session: requests.Session, question: str) -> None:
    """Submit, then poll until the result is there; works through a router too."""
    [number] = call(session, "POST", "/generate", prompt=question, gen_length=64, temperature=0)["request_ids"]
    while (result := call(session, "GET", f"/result/{number}"))["status"] == "running":
        time.sleep(0.1)
    print(f"result: {result}")


if __name__ == "__main__":
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        sys.exit(0)
    sys.exit(main(" ".join(sys.argv[1:]) or "What is 17 plus 25?"))
