"""Turns answers into rows and writes them to this process's shard as soon as they are finished."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from dlm.data.prompts import Fault, Prompt
from dlm.decoding.options import DecoderStats
from dlm.decoding.request import Completion
from dlm.distributed.heartbeat import Heartbeat
from dlm.errors import CheckpointError, NotFiniteError, RequestError
from dlm.runs.shards import ShardFile
from dlm.text import TextCodec


class ShardWriter(Callback):
    """Appends each finished answer to a shard and counts it.

    A row holds `id`, `sample` (if there are several), `prompt`, `text`, `token_ids`, `finish_reason`, `nfe`,
    `positions`, `seed`, `seconds`, `row` (the input row's other fields), and with `record` the `canvas_ids` with their
    `step_map` and `logprobs`; a row without an answer holds `id`, `prompt`, `error` and `row`. All but `seconds`
    depends on the prompt alone.

    Args:
        shard: the file that rows are appended to.
        prompts: all prompts of the run.
        stop: strings at which the text is cut.
        samples: answers per prompt.
        heart: counts what has been written.

    Attributes:
        codec: the tokenizer; set before the first answer.
        stats: the decoder's stats, published with the heartbeat; None if nothing is decoded.
    """

    def __init__(
        self, shard: ShardFile, prompts: Sequence[Prompt], stop: Sequence[str], samples: int, heart: Heartbeat
    ) -> None:
        self.shard, self.heart = shard, heart
        self.codec: TextCodec | None = None
        self.stats: DecoderStats | None = None
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._stop, self._samples = tuple(stop), samples

    def write(self, completion: Completion) -> None:
        """Write one answer. Raises `RunError` if the disk is full."""
        if completion.error is not None:
            kind = NotFiniteError if completion.fault == "not_finite" else RequestError
            self.refuse(completion.request_id, Fault(kind.__name__, completion.error))
            return
        if self.codec is None:
            raise CheckpointError("the writer has no tokenizer")
        prompt = self._prompts[completion.request_id]
        row: dict[str, Any] = {"id": prompt.id}
        if self._samples > 1:
            row["sample"] = completion.sample
        text, token_ids, stopped = self.codec.show(completion.token_ids, self._stop)
        row |= {
            "prompt": prompt.content,
            "text": text,
            "token_ids": token_ids,
            "finish_reason": "stop" if stopped else completion.finish_reason,
            "nfe": completion.nfe,
            "positions": completion.positions,
            "seed": completion.seed,
            "seconds": round(completion.seconds, 4),
        }
        if completion.step_map is not None and completion.logprobs is not None:
            row["canvas_ids"] = completion.canvas_ids
            row["step_map"] = completion.step_map
            row["logprobs"] = [None if math.isnan(value) else value for value in completion.logprobs]
        self._append(prompt, row)
        self.heart.count(rows=1, errors=0, tokens=len(token_ids), nfe=completion.nfe)

    def put(self, prompt_id: str, fields: dict[str, Any], tokens: int, nfe: int) -> None:
        """Write an answer that is not a completion, as a row of `fields`. Raises `RunError` if the disk is full."""
        prompt = self._prompts[prompt_id]
        self._append(prompt, {"id": prompt.id, "prompt": prompt.content, **fields})
        self.heart.count(rows=1, errors=0, tokens=tokens, nfe=nfe)

    def refuse(self, prompt_id: str, fault: Fault) -> None:
        """Write an error row for a prompt without an answer. Raises `RunError` if the disk is full."""
        prompt = self._prompts[prompt_id]
        error = {"type": fault.type, "message": fault.message}
        self._append(prompt, {"id": prompt.id, "prompt": prompt.content, "error": error})
        self.heart.count(rows=1, errors=1, tokens=0, nfe=0)

    def _append(self, prompt: Prompt, row: dict[str, Any]) -> None:
        if prompt.row:
            row["row"] = prompt.row
        self.shard.append(row)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.heart.update(state="running")
        self.heart.on_beat(self._tell)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell()

    def _tell(self) -> None:
        if self.stats is not None and self.stats.num_steps:
            self.heart.update(steps=self.stats.num_steps, occupancy=self.stats.mean_occupancy)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.shard.close()
