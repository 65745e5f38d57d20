"""What TRL's `VLLMClient` sends, byte for byte as its releases 1.0 to 1.10 do: the class itself cannot be made without
vLLM, and later releases speak to vLLM's own server instead."""

from __future__ import annotations

from typing import Any, Self

import httpx
import torch

from tests.serving.controlled import HEADERS

SAMPLING = {
    "n": 1, "repetition_penalty": 1.0, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": 16,
    "logprobs": 0, "structured_outputs_regex": None, "generation_kwargs": {},
}  # fmt: skip


class Client:
    """A stand-in for the client of a server; `dlm.rl.weights.communicator.join` makes its `communicator`."""

    def __init__(self, base_url: str, group_port: int) -> None:
        self.session = httpx.Client(headers=HEADERS)
        self.base_url, self.host, self.group_port = base_url, "127.0.0.1", group_port
        self.communicator: Any = None
        self.rank = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_communicator()
        self.session.close()

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self.session.post(self.base_url + path, json=body)
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}, {answer.text}")
        found: dict[str, Any] = answer.json()
        return found

    def generate(self, prompts: list[Any], **more: Any) -> dict[str, Any]:
        return self.ask("/generate/", {"prompts": prompts, "images": None, **SAMPLING, **more})

    def chat(self, messages: list[Any], **more: Any) -> dict[str, Any]:
        return self.ask("/chat/", {"messages": messages, **SAMPLING, "chat_template_kwargs": {}, "tools": None, **more})

    def update_named_param(self, name: str, weights: torch.Tensor) -> None:
        body = {"name": name, "dtype": str(weights.dtype), "shape": tuple(weights.shape)}
        self.ask("/update_named_param/", body)
        self.communicator.broadcast(weights, src=self.rank)
        self.communicator.group.barrier()

    def reset_prefix_cache(self) -> None:
        self.ask("/reset_prefix_cache/")

    def close_communicator(self) -> None:
        self.ask("/close_communicator/")
        self.communicator = None

    def get_sequence_logprobs(self, sequences: list[Any], lengths: list[int], form: str, **more: Any) -> dict[str, Any]:
        body = {
            "sequences": sequences, "prompt_lengths": lengths, "top_logprobs": 1, "temperature": 1.0,
            "response_format": form, **more,
        }  # fmt: skip
        return self.ask("/get_sequence_logprobs/", body)
