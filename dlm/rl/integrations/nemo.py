"""NeMo-RL's generation interface on top of `Rollouts`: padded token-id batches in and out, weights from its trainer.

    generation = NemoGeneration(rollouts, SamplingParams(gen_length=256), pad_token_id=tokenizer.pad_token_id)
    generation.prepare_refit_info(info)
    out = generation.generate(data, greedy=False)

Implements `nemo_rl.models.generation.interfaces.GenerationInterface` without needing the package. All work is done when
a method returns; where the interface returns futures, the list is empty, which `ray.get` accepts. Padding is removed
here: the decoder sees unpadded prompts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dlm.errors import ConfigError, RequestError, RunError
from dlm.rl.rollout import Rollout, ended_length
from dlm.rl.rollouts import Rollouts
from dlm.rl.weights.refit import Broadcasts, TorchGroup, from_broadcasts, from_shared_memory
from dlm.rl.weights.update import Shapes
from dlm.sampling_params import SamplingParams

LOGPROBS = ("raw", "processed")

Connect = Callable[[str, int, int, int, torch.device], Broadcasts]


class NemoGeneration:
    """A generation backend for NeMo-RL's training loop.

    Args:
        rollouts: decodes; needs a tokenizer if stop strings are used.
        params: parameters of every prompt; the batch's stop strings are added. With `seed`, row r of call c draws its
            noise from (seed, c, r), because a batch repeats the prompts of a group; without, each row gets a new seed.
        pad_token_id: pads the sequences on the right.
        logprobs: log-probabilities to return, `raw` or `processed` as in `Rollout`. Both are those of the forwards that
            revealed the tokens, not an autoregressive likelihood.
        refit_address: ZMQ address where the training worker on the same device sends weights; None if unused.
        packed_bytes: size of one weight broadcast (see `dlm.rl.weights.refit.from_broadcasts`).
        connect: creates the broadcast group from ip, port, rank, world size and device; `TorchGroup` by default.
        worker_index: index among several backends; its rank in the group follows the trainer's ranks.

    Raises:
        ConfigError: `logprobs` is unknown.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        params: SamplingParams,
        *,
        pad_token_id: int = 0,
        logprobs: str = "raw",
        refit_address: str | None = None,
        packed_bytes: int = 0,
        connect: Connect = TorchGroup,
        worker_index: int = 0,
    ) -> None:
        if logprobs not in LOGPROBS:
            raise ConfigError(f"logprobs={logprobs!r} must be one of {', '.join(LOGPROBS)}")
        self.rollouts, self.params, self.pad_token_id = rollouts, params, pad_token_id
        self.logprobs, self.refit_address, self.packed_bytes = logprobs, refit_address, packed_bytes
        self._connect, self.worker_index = connect, worker_index
        self._info: Shapes | None = None
        self._group: Broadcasts | None = None
        self._calls = 0
        self._closed = False

    # Generation

    def generate(self, data: Mapping[str, Any], greedy: bool = False) -> Any:
        """Decode a batch.

        Args:
            data: `input_ids` `[B, S]` right-padded, `input_lengths` `[B]`, and `stop_strings`: None, one list of texts
                for all rows, or a list of texts or None per row.
            greedy: decode at temperature 0, overriding `params`.

        Returns:
            Same type as `data`, on the device of `input_ids`: `output_ids` `[B, S']` int64, prompt and answer,
            right-padded, the answer including the end token or stop string that ended it; `generation_lengths` and
            `unpadded_sequence_lengths` `[B]` int64; `logprobs` `[B, S']` float32, 0 on the prompt and the padding;
            `truncated` `[B]` bool, true if the answer ended only because of its length.

        Raises:
            RequestError: the batch has another shape, or prompts cannot be decoded.
            RunError: shut down, asleep, or a forward failed.
        """
        if self._closed:
            raise RunError("this generation backend was shut down; make a new one")
        input_ids, prompts = _prompts(data)
        stops = _stops(data.get("stop_strings"), len(prompts))
        params = [self._params(row, stop, greedy) for row, stop in enumerate(stops)]
        self._calls += 1
        found = self.rollouts.generate(prompts, params, distributions=self.logprobs == "processed")
        codec, end_ids = self.rollouts.codec, self.rollouts.checkpoint.special.end_ids
        counts = [ended_length(each, one.stop, codec, end_ids) for each, one in zip(found, params, strict=True)]
        return type(data)(self._padded(found, counts, input_ids))  # type: ignore[call-arg]  # dict and BatchedDataDict take one

    def _params(self, row: int, stop: Sequence[str], greedy: bool) -> SamplingParams:
        given = self.params
        seed = None if given.seed is None else random.Random(f"{given.seed} {self._calls} {row}").getrandbits(63)
        temperature = 0.0 if greedy else given.temperature
        return replace(given, temperature=temperature, stop=tuple(dict.fromkeys((*given.stop, *stop))), seed=seed)

    def _padded(self, found: Sequence[Rollout], counts: Sequence[int], input_ids: Tensor) -> dict[str, Tensor]:
        device = input_ids.device
        lengths = [len(rollout.prompt_ids) + count for rollout, count in zip(found, counts, strict=True)]
        width = max([input_ids.shape[1], *lengths])
        output_ids = torch.full((len(found), width), self.pad_token_id, dtype=torch.int64)
        logprobs = torch.zeros(len(found), width)
        for row, (rollout, count, stop) in enumerate(zip(found, counts, lengths, strict=True)):
            values = rollout.logprobs_raw if self.logprobs == "raw" else rollout.logprobs_processed
            output_ids[row, :stop] = torch.tensor([*rollout.prompt_ids, *rollout.replay_token_ids[:count]])
            logprobs[row, stop - count : stop] = torch.tensor(values[:count])
        return {
            "output_ids": output_ids.to(device),
            "generation_lengths": torch.tensor(counts, dtype=torch.int64, device=device),
            "unpadded_sequence_lengths": torch.tensor(lengths, dtype=torch.int64, device=device),
            "logprobs": logprobs.to(device),
            "truncated": torch.tensor(
                [one.finish_reason == "length" for one in found], dtype=torch.bool, device=device
            ),
        }

    def prepare_for_generation(self, *args: Any, tags: Sequence[str] | None = None, **kwargs: Any) -> bool:
        """Wake up. `tags` selects parts: `weights` before an update, `kv_cache` before decoding. Other arguments
        are for other backends."""
        self._refuse_closed()
        self.rollouts.wake(tags)
        return True

    def finish_generation(self, *args: Any, release_gpu: bool = True, **kwargs: Any) -> bool:
        """Free the device memory for the trainer, except weights shared with it; a no-op if `release_gpu` is False.
        Other arguments are for other backends."""
        if release_gpu and not self._closed:
            self.rollouts.sleep()
        return True

    def shutdown(self) -> bool:
        """Release the group and the device memory; later calls do nothing."""
        if not self._closed:
            self.rollouts.sleep()
            self._closed, self._group = True, None
        return True

    def invalidate_kv_cache(self) -> bool:
        """Free the KV cache."""
        self._refuse_closed()
        self.rollouts.flush_cache()
        return True

    # Weights

    def init_collective(self, ip: str, port: int, world_size: int, *, train_world_size: int) -> list[Any]:
        """Join the group whose first `train_world_size` ranks are trainers; rank 0 hosts the store at `ip:port`.

        Raises:
            ConfigError: the group has no rank for this backend.
        """
        self._refuse_closed()
        rank = train_world_size + self.worker_index
        if not 0 < rank < world_size:
            raise ConfigError(
                f"world_size={world_size} with train_world_size={train_world_size} leaves no rank for backend "
                f"{self.worker_index}"
            )
        device = self.rollouts.checkpoint.backbone.device
        self._group = self._connect(ip, port, rank, world_size, device)
        return []

    def prepare_refit_info(self, state_dict_info: Mapping[str, tuple[Sequence[int], torch.dtype]]) -> None:
        """Set what updates will contain, `{name: (shape, dtype)}`, in order. Raises `CheckpointError` naming tensors
        that do not fit the model."""
        if not self.rollouts.shared:
            self.rollouts.check_shapes(state_dict_info)
        self._info = dict(state_dict_info)

    def update_weights_from_collective(self) -> list[Any]:
        """Receive weights from rank 0 of the group. Raises as `Rollouts.update_weights_from_stream`."""
        if self._group is None:
            raise RunError("update_weights_from_collective: call init_collective first")
        device = self.rollouts.checkpoint.backbone.device
        info = self._announced()
        return self._update(info, from_broadcasts(info, self._group, device, self.packed_bytes))

    def update_weights_via_ipc_zmq(self) -> list[Any]:
        """Receive weights from the local training worker. Raises as `Rollouts.update_weights_from_stream`."""
        address = self.refit_address
        if address is None:
            raise RunError("update_weights_via_ipc_zmq: pass refit_address=, the worker's ZMQ address")
        device = self.rollouts.checkpoint.backbone.device
        info = self._announced()
        return self._update(info, from_shared_memory(info, address, device))

    def _announced(self) -> Shapes:
        self._refuse_closed()
        if self._info is None:
            raise RunError("an update of the weights: call prepare_refit_info first")
        return self._info

    def _update(self, info: Shapes, tensors: Iterable[tuple[str, Tensor]]) -> list[Any]:
        self.rollouts.update_weights_from_stream(info, tensors, version=self.rollouts.weight_version + 1)
        return []

    def _refuse_closed(self) -> None:
        if self._closed:
            raise RunError("this generation backend was shut down; make a new one")


def _prompts(data: Mapping[str, Any]) -> tuple[Tensor, list[list[int]]]:
    """`input_ids`, and its rows without padding. Raises `RequestError`."""
    missing = [name for name in ("input_ids", "input_lengths") if name not in data]
    if missing:
        raise RequestError(f"the batch is missing {', '.join(missing)}; it has {', '.join(data)}")
    input_ids, lengths = data["input_ids"], data["input_lengths"]
    if input_ids.dim() != 2 or input_ids.is_floating_point() or lengths.shape != input_ids.shape[:1]:
        raise RequestError(
            f"input_ids has shape {list(input_ids.shape)} and input_lengths {list(lengths.shape)}; expected integer "
            "tensors [B, S] and [B]"
        )
    counts = lengths.tolist()
    wrong = [row for row, count in enumerate(counts) if not 1 <= count <= input_ids.shape[1]]
    if wrong:
        raise RequestError(f"input_lengths[{wrong[0]}]={counts[wrong[0]]} must be 1..{input_ids.shape[1]}")
    return input_ids, [row[:count] for row, count in zip(input_ids.tolist(), counts, strict=True)]


def _stops(given: Any, rows: int) -> list[tuple[str, ...]]:
    """The stop strings of each row. Raises `RequestError`."""
    if given is None or (isinstance(given, Sequence) and all(isinstance(one, str) for one in given)):
        return [tuple(given or ())] * rows
    if len(given) != rows:
        raise RequestError(f"{len(given)} stop_strings for {rows} rows; pass one list for all rows, or one per row")
    return [tuple(one or ()) for one in given]
