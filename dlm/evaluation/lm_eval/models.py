"""The models under lm-eval's base class, and their registration. Needs the package lm-eval.

Releases of lm-eval after 0.4.13 find both by the entry points `lm_eval.models` of this package, so that
`lm_eval --model dlm` works; for others `python -m dlm.lm_eval` registers them before lm-eval begins.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from dlm.decoding.options import DecoderOptions
from dlm.demo import CHECKPOINT
from dlm.errors import CheckpointError, ConfigError
from dlm.evaluation.lm_eval.answering import Answering
from dlm.evaluation.lm_eval.asking import Settings
from dlm.evaluation.lm_eval.local import Local
from dlm.evaluation.lm_eval.remote import RemoteServer
from dlm.inputs import as_arguments
from dlm.llm import LLM
from dlm.models.io.hub import resolve_folder
from dlm.models.io.model_source import DEMO
from dlm.text import TextCodec

DEVICE = "cuda:0"
"""What lm-eval names where `--device` is left out."""

log = logging.getLogger(__name__)


class InProcess(Answering, LM):  # type: ignore[misc]  # lm-eval need not be here, and has no types
    """`--model dlm`: a checkpoint loaded here.

    Args:
        model: a folder, a hub id with `revision=`, or `demo`.
        batch_size: prompts decoded at once; `auto` is the decoder's own choice. Changes speed, never an answer.
        max_batch_size: with `batch_size=auto`, not more than so many.
        device: of the model; `cuda:0`, which lm-eval says unless told otherwise, is the CPU where there is no GPU.
        arguments: fields of `Settings` and of `dlm.SamplingParams`; the others are those of `dlm.LLM`.

    Raises:
        ConfigError: several processes, each of which would do everything.
        RequestError: a wrong value, by name.
        TypeError: an unknown argument, by name.
    """

    def __init__(
        self,
        model: str,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
        **arguments: Any,
    ) -> None:
        LM.__init__(self)
        settings, options = Settings.split(arguments)
        shared = int(options.get("tensor_parallel_size", 1)) > 1
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not shared:
            raise ConfigError(
                "several processes, and each would do every request: start one, with tensor_parallel_size=N for one "
                "model on N devices, or dlm-http and `python -m dlm.serve devices=N` for N models"
            )
        options.setdefault("max_num_seqs", _batch(batch_size, max_batch_size))
        llm = LLM(model, device=_device(device, shared=shared), **options)
        Answering.__init__(self, Local(llm, settings), settings, model)


class OverHttp(Answering, LM):  # type: ignore[misc]  # lm-eval need not be here, and has no types
    """`--model dlm-http`: a checkpoint that a server of `dlm.serve` has.

    Args:
        base_url: the server.
        model: a name that it serves; None is its first.
        tokenizer: the served checkpoint's: a folder, a hub id with `revision=`, or `demo`; None is `model`.
        revision: of a hub id.
        batch_size: as lm-eval always gives it, 1 or `auto`; requests are single, `num_concurrent` of them at once.
        max_batch_size: None.
        device: as lm-eval always gives it; the server has its own.
        arguments: fields of `Settings` and of `dlm.SamplingParams`; the others are those of `RemoteServer`.

    Raises:
        As `RemoteServer`, and RequestError, TypeError as `InProcess`; ConfigError for a batch.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        tokenizer: str | None = None,
        revision: str | None = None,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
        **arguments: Any,
    ) -> None:
        LM.__init__(self)
        if str(batch_size) not in ("1", "auto") or max_batch_size is not None:
            raise ConfigError(
                f"batch_size={batch_size}, max_batch_size={max_batch_size}: the server makes batches of what arrives "
                "together; leave them out and set num_concurrent in the model arguments"
            )
        settings, options = Settings.split(arguments)
        name = tokenizer or model
        if name is None:
            raise ConfigError(
                "tokenizer is not set: name the served checkpoint's folder or hub id in the model arguments"
            )
        backend = RemoteServer(base_url, _codec(name, revision), settings, model=model, **options)
        Answering.__init__(self, backend, settings, name)


def register() -> None:
    """Make both known to lm-eval by name."""
    import lm_eval.models  # noqa: F401  # with any name registered, lm-eval takes its own for registered too

    register_model("dlm")(InProcess)
    register_model("dlm-http")(OverHttp)


def _batch(batch_size: int | str, most: int | None) -> int:
    """Prompts decoded at once."""
    if str(batch_size).startswith("auto"):
        return min(DecoderOptions.max_num_seqs, most or DecoderOptions.max_num_seqs)
    if most is not None:
        raise ConfigError(f"max_batch_size={most} goes with batch_size=auto alone; leave one of them out")
    if int(batch_size) == 1:
        log.warning("batch_size=1: one prompt is decoded at a time; --batch_size auto is faster, with the same answers")
    return int(batch_size)


def _device(device: str | None, *, shared: bool) -> str:
    """The device for `LLM`."""
    if device == DEVICE and not torch.cuda.is_available():
        log.warning("device=%s: there is no GPU, so the model runs on the CPU", device)
        return "cpu"
    return device.partition(":")[0] if shared and device == DEVICE else device or "auto"


def _codec(name: str, revision: str | None) -> TextCodec:
    """The tokenizer of a checkpoint, without its weights."""
    try:
        folder = CHECKPOINT if name == DEMO else resolve_folder(name, revision, weights=False, key="tokenizer")
    except CheckpointError as error:
        raise CheckpointError(as_arguments(str(error))) from error
    return TextCodec.load(folder)
