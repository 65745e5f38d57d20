"""The library's front door: a model, prompts in, answers out.

    from dlm import LLM, SamplingParams

    with LLM("demo") as llm:
        [out] = llm.generate(["What is 3 + 4?"], SamplingParams(gen_length=32, temperature=0.0))
        print(out["text"])

Knows no configuration files and no Trainer; one process, one device.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any

import torch
from tqdm import tqdm

from dlm.decoding.decoder import Decoder
from dlm.decoding.memory import Limits, budget, plan_memory, records
from dlm.decoding.options import DecoderOptions
from dlm.decoding.request import Request
from dlm.decoding.tensor_parallel.decoder import ParallelDecoder
from dlm.errors import ConfigError, RequestError, RunError
from dlm.inputs import Prompt, as_arguments, check_numbers, choose_device, one_each, prompt_list
from dlm.models.io.loading import Checkpoint, load_checkpoint, read_checkpoint_config
from dlm.models.io.model_source import CheckpointSource
from dlm.models.sharding import check_divisible
from dlm.outputs import item_of, refusal, sample_of
from dlm.sampling_params import SamplingParams, SparseConfig
from dlm.text import TextCodec


@dataclass(frozen=True)
class PromptJob:
    """A prompt as it was given, and how it is to be decoded."""

    prompt: Prompt
    params: SamplingParams
    sparse: SparseConfig | None


class LLM:
    """A loaded model that decodes prompts.

    What a prompt gets depends on that prompt, its parameters and its seed alone: not on the other prompts of the call.
    One call decodes at a time; a call from another thread waits.

    Args:
        model: a folder, a hub id `owner/name`, or `demo`, the bundled checkpoint.
        revision: commit, tag or branch of a hub id; needed there, None for a folder.
        dtype: `float32`, `bfloat16`, `float16`, `float64`, or `auto`: the one that the checkpoint names.
        device: `auto` is a GPU where there is one; else `cpu`, `cuda`, `cuda:1`.
        tensor_parallel_size: devices, or processes on a CPU, that share the weights: the first GPUs, or what a launcher
            such as torchrun started. It divides the model's heads and widths.
        max_model_len: positions (prompt and `gen_length`) that a prompt may take; None is what the model has.
        max_num_seqs: prompts (samples) decoded at once; those beyond, and those for which the key/value memory has no
            room yet, wait.
        max_num_batched_tokens: positions recomputed in one forward; a prompt longer than that goes alone.
        gpu_memory_utilization: above 0 and at most 1. On a GPU the share of its memory that weights, key/value memory,
            logits and activations take together, memory that others use there included. On a CPU the share of the
            memory that is free once the weights are loaded. Changes speed, never an answer.
        enforce_eager: True: no CUDA graph is captured. Otherwise steps that reuse the cache are, on a GPU in half
            precision; on a CPU there are none.
        trust_remote_code: must stay False: code of a checkpoint is never run, every family has a native model.

    Raises:
        ConfigError: a value that is out of range or cannot be had here.
        CheckpointError: a model that cannot be loaded.
        TypeError: an unknown keyword, by name.
    """

    def __init__(
        self,
        model: str | PathLike[str],
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        tensor_parallel_size: int = 1,
        max_model_len: int | None = None,
        max_num_seqs: int = DecoderOptions.max_num_seqs,
        max_num_batched_tokens: int = DecoderOptions.max_num_batched_tokens,
        gpu_memory_utilization: float = 0.9,
        enforce_eager: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        if trust_remote_code:
            raise ConfigError(
                f"trust_remote_code={trust_remote_code!r}: code of a checkpoint is never run here, and no family needs "
                "it (each has a native model); leave it out"
            )
        check_numbers(
            gpu_memory_utilization,
            tensor_parallel_size=tensor_parallel_size,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
        )
        if not isinstance(enforce_eager, bool):
            raise ConfigError(f"enforce_eager={enforce_eager!r} must be True or False")
        self.device = choose_device(device)
        source = CheckpointSource(str(model), revision, str(dtype).removeprefix("torch."))
        faults = source.faults()
        if faults:
            raise ConfigError(as_arguments("; ".join(faults)))
        folder = source.folder()
        self.parallel, self._load = tensor_parallel_size, partial(load_checkpoint, folder, dtype=source.dtype)
        self.config = read_checkpoint_config(folder)
        check_divisible(self.config.backbone, self.parallel)
        if self.parallel > 1 and self.device.index is not None:
            raise ConfigError(
                f"device={device!r} names one device, tensor_parallel_size={self.parallel} takes the first"
            )
        longest = self.config.backbone.max_positions
        self.max_model_len = longest if max_model_len is None else max_model_len
        if self.max_model_len > longest:
            raise ConfigError(f"max_model_len={max_model_len}: the model has {longest} positions; lower it")
        self.codec = TextCodec.load(folder)
        self._lock = threading.Lock()
        self._closed = False
        limits = Limits(self.max_model_len, max_num_seqs, max_num_batched_tokens, gpu_memory_utilization)
        _, stored = source.architecture()
        available = budget(self.device, gpu_memory_utilization, self.config.backbone, stored, self.parallel)
        recorded = not enforce_eager and records(self.device, stored, self.parallel)
        planned = plan_memory(self.config.backbone, stored, limits, available, self.parallel, recorded=recorded)
        self.options = replace(planned, enforce_eager=enforce_eager)
        self._checkpoint: Checkpoint | None = None
        self._decoder: Decoder | None = self._open()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        sparse_configs: SparseConfig | Sequence[SparseConfig | None] | None = None,
        use_tqdm: bool = True,
    ) -> list[dict[str, Any]]:
        """Decode prompts.

        A text goes through the checkpoint's chat template, where it has one, as the one message of a user, as in every
        other way into this package; token ids are taken as they are, and those of the mask are positions to fill in.

        Args:
            prompts: texts or lists of token ids, mixed as you like; a single one is a list of one.
            sampling_params: one for all, or one for each prompt; None is `SamplingParams()`.
            sparse_configs: likewise; None attends to everything.
            use_tqdm: show a progress bar on stderr.

        Returns:
            One item a prompt, in order. Its keys, of the first sample: `text`; `token_ids`, without what ended the
            answer; `finish_reason` (`stop`, `length`, `error`); `nfe`, forwards that it took part in; `step_map`, for
            each of `token_ids` the 1-based forward that revealed it; `seconds` from admission to the end; `seed`;
            `prompt_token_ids`, masks filled in; `logprobs` with `record=True` (not an autoregressive likelihood).
            `outputs` lists all `n` samples with the same keys, and `usage` counts `prompt_tokens`, `completion_tokens`
            of all samples and `total_tokens`. A prompt that cannot be decoded (empty, over-long, a token outside the
            vocabulary, an algorithm that the family cannot run) has `error`, the reason, beside an empty text, and its
            neighbours are unharmed.

        Raises:
            TypeError: arguments that are not prompts or parameters at all.
            RequestError: a `ValueError`; as many parameters as prompts are needed, or one.
            RunError: the object was closed.

        Interrupted (Ctrl-C), it forgets the prompts of the call and can be used again.
        """
        given = prompt_list(prompts)
        wanted = SamplingParams() if sampling_params is None else sampling_params
        params = one_each("sampling_params", wanted, SamplingParams, len(given))
        sparse = one_each("sparse_configs", sparse_configs, SparseConfig, len(given), optional=True)
        jobs = [PromptJob(*each) for each in zip(given, params, sparse, strict=True)]
        with self._lock:
            if self._closed:
                raise RunError("this LLM is closed; make a new one")
            if self._decoder is None:
                self._decoder = self._open()
            with tqdm(total=len(jobs), disable=not use_tqdm, unit="prompt", dynamic_ncols=True) as bar:
                try:
                    return self._decode(self._decoder, jobs, bar)
                except BaseException:
                    self._drop()  # it may have been left between two states, with canvases in its arena
                    raise

    def _decode(self, decoder: Decoder, jobs: Sequence[PromptJob], bar: tqdm) -> list[dict[str, Any]]:
        items: dict[int, dict[str, Any]] = {}
        samples: dict[int, list[dict[str, Any]]] = {}
        begun, tokens, forwards = time.perf_counter(), 0, decoder.stats.num_steps

        def settle(index: int, item: dict[str, Any]) -> None:
            items[index] = item
            rate = tokens / max(time.perf_counter() - begun, 1e-9)
            bar.set_postfix({"tokens/s": f"{rate:.1f}", "forwards": decoder.stats.num_steps - forwards}, refresh=False)
            bar.update()

        # All at once: under a launcher every process has to know what is refused, and the requests are rank 0's.
        requests = list(self._requests(jobs, lambda index, message: settle(index, refusal(message))))
        with closing(decoder.run(requests)) as completions:  # type: ignore[type-var]  # declared as an iterator
            for completion in completions:
                index = int(completion.request_id)
                if completion.error is not None:
                    settle(index, refusal(completion.error))
                    continue
                mine = samples.setdefault(index, [])
                mine.append(sample_of(completion, jobs[index].params, self.codec))
                tokens += len(completion.token_ids)
                if len(mine) == jobs[index].params.n:
                    settle(index, item_of(sorted(mine, key=lambda sample: sample["sample"])))
        return [items[index] for index in range(len(jobs))]

    def _requests(self, jobs: Sequence[PromptJob], refuse: Callable[[int, str], None]) -> Iterator[Request]:
        for index, job in enumerate(jobs):
            try:
                request = self._request(index, job)
            except RequestError as error:
                refuse(index, str(error))
            else:
                yield request

    def _request(self, index: int, job: PromptJob) -> Request:
        """The decoder's request for a job. Raises `RequestError`."""
        config = self.config.backbone
        params, engine, sampler = job.params.translate(
            self.config.family, config.attention, config.block_length, job.sparse
        )
        if isinstance(job.prompt, str):
            self.codec.check_fits(job.prompt, self.max_model_len)
        token_ids = self._token_ids(job.prompt, config.vocab_size)
        length, size = len(token_ids) + params.gen_length, params.block_length
        length = -(-length // size) * size if engine.blocks_from_zero else length
        if length > self.max_model_len:
            raise RequestError(
                f"prompt of {len(token_ids)} tokens and gen_length={params.gen_length} make {length} positions, "
                f"max_model_len is {self.max_model_len}; shorten one of them"
            )
        # The step map of an answer is always given, and the decoder keeps it with the log-probabilities.
        params = replace(params, record=True)
        return Request(str(index), token_ids, params, engine, sampler, self.codec.stop_check(job.params.stop))

    def _token_ids(self, prompt: Prompt, vocab_size: int) -> tuple[int, ...]:
        token_ids = (
            (self.codec.encode(prompt) if prompt else ()) if isinstance(prompt, str) else tuple(map(int, prompt))
        )
        if not token_ids:
            raise RequestError("the prompt is empty; give at least one token")
        for token in token_ids:
            if not 0 <= token < vocab_size:
                raise RequestError(f"prompt token {token} is outside the vocabulary 0..{vocab_size - 1}")
        return token_ids

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's transformers tokenizer, for prompts as token ids."""
        return self.codec.tokenizer

    @property
    def checkpoint(self) -> Checkpoint:
        """The weights that decode. Raises `RunError` where there are none in this process."""
        if self._checkpoint is None:
            raise RunError(
                "this LLM has no weights: it was closed, or tensor_parallel_size shares them among processes"
            )
        return self._checkpoint

    def _open(self) -> Decoder:
        """A decoder; weights are read unless they are here."""
        if self.parallel > 1:
            load = partial(self._load, device=self.device.type)
            return ParallelDecoder.start(
                load, self.config.backbone, self.parallel, self.options, device=self.device.type
            )
        if self._checkpoint is None:
            self._checkpoint = self._load(device=self.device)
        return Decoder(self._checkpoint.backbone, self.config.special, self.options)

    def _drop(self) -> None:
        """Let go of the decoder, with its processes where it has several; the next call opens another."""
        decoder, self._decoder = self._decoder, None
        if isinstance(decoder, ParallelDecoder):
            decoder.close()

    def close(self) -> None:
        """Let go of weights and key/value memory; waits for a call in progress, and may be called again."""
        with self._lock:
            self._closed = True
            self._drop()
            self._checkpoint = None
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
