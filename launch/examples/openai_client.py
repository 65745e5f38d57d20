"""Query a server with the `openai` package: an answer, a stream, and a stream that shows the canvas denoise.

    python -m dlm.serve &                              # or launch/connect.sh JOB_ID
    python launch/examples/openai_client.py "What is 17 plus 25?"

The server's address is DLM_BASE_URL (http://127.0.0.1:8000/v1), its key DLM_API_KEY. Needs `pip install openai`.
"""

from __future__ import annotations

import os
import sys

from openai import APIError, OpenAI


def main(question: str) -> int:
    client = OpenAI(
        base_url=os.environ.get("DLM_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("DLM_API_KEY") or "no key",  # the package requires one; a server without a key takes any
    )
    try:
        model = client.models.list().data[0].id
        ask(client, model, question)
        stream(client, model, question)
        watch(client, model, question)
    except APIError as error:
        print(f"{client.base_url}: {error}", file=sys.stderr)
        return 1
    return 0


def ask(client: OpenAI, model: str, question: str) -> None:
    """One answer. Fields that OpenAI does not have go into `extra_body`; extra results are in `dlm`."""
    completion = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=64,
        temperature=0,
        extra_body={"block_length": 16},
    )
    choice, usage = completion.choices[0], completion.usage
    print(f"answer: {choice.message.content}")
    print(f"  {choice.finish_reason}, {usage.completion_tokens if usage else '?'} tokens")
    print(f"  {(completion.model_extra or {}).get('dlm')}")


def stream(client: OpenAI, model: str, question: str) -> None:
    """The same, streamed: text arrives one finished block at a time."""
    print("stream: ", end="")
    chunks = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=64, temperature=0, stream=True
    )
    for chunk in chunks:
        if chunk.choices and chunk.choices[0].delta.content:
            print(chunk.choices[0].delta.content, end="", flush=True)
    print()


def watch(client: OpenAI, model: str, question: str) -> None:
    """The canvas: each event lists the positions revealed, in any order."""
    chunks = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=64,
        temperature=0,
        stream=True,
        extra_body={"dlm_events": True},
    )
    canvas: list[str] = []
    for chunk in chunks:
        event = (chunk.model_extra or {}).get("dlm") or {}
        if event.get("event") == "start":
            canvas = ["_"] * event["gen_length"]
        elif event.get("event") == "step":
            for position, text, _confidence in event["revealed"]:
                canvas[position] = text
            print(f"step {event['step']:3}: {''.join(canvas)!r}")


if __name__ == "__main__":
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        sys.exit(0)
    sys.exit(main(" ".join(sys.argv[1:]) or "What is 17 plus 25?"))
