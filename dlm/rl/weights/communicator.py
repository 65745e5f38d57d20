"""Weights from TRL's `VLLMClient` to a server of ours, over torch.distributed on the host.

The client itself sends over vLLM's wrapper of NCCL, which a server without vLLM cannot join. In the training program

    from trl.generation.vllm_client import VLLMClient
    from dlm.rl.weights.communicator import join
    VLLMClient.init_communicator = join

before the trainer is made; everything else of the client stays as it is.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from dlm.rl.weights.refit import TorchGroup

BACKEND = "gloo"
"""What the client tells the server that it will speak."""
HOST = torch.device("cpu")
TIMEOUT = 120.0
"""Seconds for one HTTP request."""


class Communicator(TorchGroup):
    """The group of the server (rank 0) and the client (rank 1), as `VLLMClient` uses one.

    Args:
        host, port: where the server keeps the store.
        rank, world_size: which process this is, of how many.
    """

    def __init__(self, host: str, port: int, rank: int, world_size: int) -> None:
        super().__init__(host, port, rank, world_size, HOST)
        self._rank = rank

    @property
    def group(self) -> Self:
        """The client says `communicator.group.barrier()`."""
        return self

    def broadcast(self, tensor: Tensor, src: int) -> None:
        """Send `tensor`, from whichever device, or fill it where this process is not `src`."""
        on_host = tensor.detach().to(HOST).contiguous()
        super().broadcast(on_host, src)
        if src != self._rank:
            tensor.detach().copy_(on_host)


def join(client: Any, device: torch.device | str | int = 0) -> None:
    """What `VLLMClient.init_communicator` does, with a group that the server can join; `device` may be any.

    Raises `RuntimeError` with what the server says where it refuses.
    """
    size = _answer(client.session.get(f"{client.base_url}/get_world_size/", timeout=TIMEOUT))["world_size"] + 1
    client.rank = size - 1
    body = {"host": "0.0.0.0", "port": client.group_port, "world_size": size, "backend": BACKEND}
    _answer(client.session.post(f"{client.base_url}/init_communicator/", json=body, timeout=TIMEOUT))
    client.communicator = Communicator(client.host, client.group_port, client.rank, size)


def _answer(response: Any) -> Any:
    if response.status_code != 200:
        raise RuntimeError(f"the server answered {response.status_code}: {response.text}")
    return response.json()
