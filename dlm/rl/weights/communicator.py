"""Sends weights from TRL's `VLLMClient` to a dlm server, over torch.distributed on the host.

The client itself uses vLLM's NCCL wrapper, which a server without vLLM cannot join. In the training program, run

    from trl.generation.vllm_client import VLLMClient
    from dlm.rl.weights.communicator import join
    VLLMClient.init_communicator = join

before creating the trainer; the rest of the client is unchanged.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from dlm.rl.weights.refit import TorchGroup

BACKEND = "gloo"
"""The backend that the client announces to the server."""
HOST = torch.device("cpu")
TIMEOUT = 120.0
"""Seconds for one HTTP request."""


class Communicator(TorchGroup):
    """The group of the server (rank 0) and the client (rank 1), as `VLLMClient` uses one.

    Args:
        host, port: address of the server's store.
        rank, world_size: this process's rank, and the size of the group.
    """

    def __init__(self, host: str, port: int, rank: int, world_size: int) -> None:
        super().__init__(host, port, rank, world_size, HOST)
        self._rank = rank

    @property
    def group(self) -> Self:
        """Self, because the client calls `communicator.group.barrier()`."""
        return self

    def broadcast(self, tensor: Tensor, src: int) -> None:
        """Send `tensor`, which may be on any device, or fill it if this process is not `src`."""
        on_host = tensor.detach().to(HOST).contiguous()
        super().broadcast(on_host, src)
        if src != self._rank:
            tensor.detach().copy_(on_host)


def join(client: Any, device: torch.device | str | int = 0) -> None:
    """Replacement for `VLLMClient.init_communicator` with a group that the server can join; `device` is ignored.

    Raises `RuntimeError` with the server's response if it refuses.
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
