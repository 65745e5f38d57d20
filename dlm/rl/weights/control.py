"""What a rollout's model is besides decoding: its weights and their version, who may use it now, and sleep."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlm.decoding.decoder import Decoder
from dlm.decoding.params import check_whole
from dlm.errors import ConfigError, DLMError, RequestError, RunError
from dlm.models.backbone import Backbone
from dlm.models.io.loading import Checkpoint
from dlm.models.lora.training import adapter_of
from dlm.rl.weights import broadcast
from dlm.rl.weights.offload import WeightOffload
from dlm.rl.weights.update import NamedTensors, Shapes, WeightWriter, folder_source, gathered, shapes_of, source_shapes

WEIGHTS, KV_CACHE = "weights", "kv_cache"
TAGS = (WEIGHTS, KV_CACHE)
"""What can sleep."""


class WeightControl:
    """A model whose weights can be replaced and can sleep.

    One thing is done at a time: a call while another is in progress, from a callback or from another thread, is refused
    with a `RunError` and changes nothing. So weights never change in the middle of a generation.

    Args:
        checkpoint: the model that decodes.
        trainer: the module that is being trained, of the same architecture; `checkpoint.backbone` itself where the
            weights are shared; None where there is none.
        weight_version: of the weights as they are.

    Raises:
        ConfigError: the trainer's module is no `Backbone`, or one of another architecture.
    """

    def __init__(self, checkpoint: Checkpoint, trainer: Backbone | None, weight_version: int) -> None:
        check_whole("weight_version", weight_version, 0)
        if trainer is not None and not isinstance(trainer, Backbone):
            raise ConfigError(f"trainer is a {type(trainer).__name__}; give the Backbone inside it")
        if trainer is not None and trainer.config != checkpoint.backbone.config:
            raise ConfigError("trainer has another architecture than the model that decodes; load both from one folder")
        self.checkpoint, self.trainer = checkpoint, trainer
        self._decoder: Decoder | None = None
        self._version = weight_version
        self._residence = WeightOffload(checkpoint.backbone)
        self._asleep: set[str] = set()
        self._torn: str | None = None
        self._lock, self._doing = threading.Lock(), ""

    @property
    def weight_version(self) -> int:
        """Of the weights that the next rollout is decoded with."""
        return self._version

    @property
    def shared(self) -> bool:
        """Whether the weights are the trainer's own."""
        return self.trainer is self.checkpoint.backbone

    @property
    def asleep(self) -> frozenset[str]:
        """What sleeps, of `TAGS`."""
        return frozenset(self._asleep)

    @property
    def torn(self) -> str | None:
        """Why the weights are a mixture that must not be used; None where they are whole."""
        return self._torn

    # Weights

    def update_weights(self, named_tensors: NamedTensors, *, version: int) -> None:
        """Take new weights, written into the memory that the model has.

        Args:
            named_tensors: all of the model's, under the names of the family's checkpoints or of `Backbone`'s
                parameters; prefixes of wrappers and trainers, an optimizer's tensors and copies of a tied weight may be
                there. In any floating-point dtype, on any device.
            version: what rollouts made with them say.

        Raises:
            CheckpointError: missing, unknown, misshapen, twice or not numbers: named, and nothing was changed.
            RunError: another call is in progress, the weights sleep or are the trainer's own; nothing was changed.
        """
        tensors = gathered(named_tensors)
        with self._rewriting(shapes_of(tensors), version) as writer:
            writer.write_all(tensors)

    def update_weights_from_disk(self, folder: str | Path, *, version: int) -> None:
        """Take the weights of a folder of safetensors or of `torch.distributed.checkpoint`, which are read into memory
        before the first is written. Raises as `update_weights`; `CheckpointError` also for a folder that cannot be read
        or whose config.json is of another architecture."""
        source = folder_source(folder, self.checkpoint.backbone)
        with self._rewriting(source_shapes(source), version) as writer:
            source.verify(writer.names)
            writer.write_all({name: source.read(name) for name in writer.names})

    def update_weights_from_stream(
        self, shapes: Shapes, named_tensors: Iterable[tuple[str, Tensor]], *, version: int
    ) -> None:
        """Take weights that come one by one; each is written when it comes and may be forgotten then.

        Args:
            shapes: shape and dtype of everything that will come.
            named_tensors: what comes, each once, in any order.
            version: as in `update_weights`.

        Raises:
            As `update_weights`, and whatever `named_tensors` raises. When something had been written then, the weights
            are a mixture: every later call says so until an update succeeds.
        """
        with self._rewriting(shapes, version) as writer:
            writer.write_stream(named_tensors)

    def update_weights_from_group(self, group: Any = None, *, src: int = 0) -> None:
        """Take weights and their version from the process `src` of a torch.distributed group, which calls
        `dlm.rl.send_weights`.

        Args:
            group: None is the default one.
            src: rank of the sender in the default group.

        Raises:
            CheckpointError: one of the group's processes cannot take them; all raise it and nothing was changed.
            As `update_weights_from_stream`, when the group breaks off.
        """
        news = broadcast.announced(src, group)
        with self._rewriting(news.shapes, news.version, partial(broadcast.agree, group=group)) as writer:
            writer.write_stream(broadcast.received(news, src, group))

    def sync(self, *, version: int) -> None:
        """The trainer's module has new weights: shared ones are only given their version, else they are copied, with
        what an adapter in training adds to them.

        Raises:
            RunError: there is no trainer's module; or as `update_weights`.
        """
        if self.trainer is None:
            raise RunError("sync: there is no trainer's module; use update_weights")
        if not self.shared:
            self._take_over(self.trainer, version)
            return
        check_whole("version", version, 0)
        with self._alone("sync"):
            self._version = version

    def _take_over(self, trainer: Backbone, version: int) -> None:
        lora = adapter_of(trainer)
        if lora is None:
            self.update_weights(trainer.named_parameters(), version=version)
            return
        shapes = {name: (tuple(weight.shape), weight.dtype) for name, weight in lora.weights.items()}
        self.update_weights_from_stream(shapes, lora.merged(), version=version)

    def check_disk(self, folder: str | Path) -> None:
        """Raise `CheckpointError` unless an update from this folder can be taken, as far as names and shapes tell;
        asleep too."""
        self.check_shapes(source_shapes(folder_source(folder, self.checkpoint.backbone)))

    def check_shapes(self, shapes: Shapes) -> None:
        """Raise `CheckpointError` unless an update of these names, shapes and dtypes can be taken; asleep too."""
        with torch.device("meta"):
            like = Backbone(self.checkpoint.backbone.config)
        WeightWriter(shapes, self.checkpoint.family, like)

    @contextmanager
    def _rewriting(
        self, shapes: Shapes, version: int, agree: Callable[[str | None], None] = lambda fault: None
    ) -> Iterator[WeightWriter]:
        """Everything is checked at the start; what goes wrong after the first write is remembered.

        `agree` is told what was found before anything is written; it raises where the update must not go on.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self._alone("an update of the weights"))
                writer = self._writer(shapes, version)
            except DLMError as error:
                agree(str(error))
                raise
            agree(None)
            try:
                yield writer
                writer.finish()
            except BaseException as error:
                if writer.begun:
                    self._torn = f"the update to version {version} broke off ({type(error).__name__}: {error})"
                raise
            self._version, self._torn = version, None

    def _writer(self, shapes: Shapes, version: int) -> WeightWriter:
        check_whole("version", version, 0)
        if self.shared:
            raise RunError("the weights are the trainer's own; change them there and call sync(version=)")
        if WEIGHTS in self._asleep:
            raise RunError("the weights sleep; call wake(['weights']) before an update")
        return WeightWriter(shapes, self.checkpoint.family, self.checkpoint.backbone)

    # Sleep

    def sleep(self, tags: Sequence[str] | None = None) -> None:
        """Give memory back to the device: the decoder's key/value memory and recordings (`kv_cache`), and the weights,
        which go to the host (`weights`). What sleeps already goes on sleeping.

        Args:
            tags: which; None is all that is not the trainer's own.

        Raises:
            RequestError: an unknown tag.
            RunError: another call is in progress, or the weights are the trainer's own and stay.
        """
        chosen = _checked(tags, [KV_CACHE] if self.shared else TAGS)
        with self._alone("sleep"):
            if WEIGHTS in chosen and self.shared:
                raise RunError("the weights are the trainer's own and stay where they are; sleep(['kv_cache'])")
            self._drop_decoder()
            if WEIGHTS in chosen:
                self._residence.leave()
            self._asleep |= chosen

    def wake(self, tags: Sequence[str] | None = None) -> None:
        """Undo `sleep`: the weights are bit for bit what they were. What is awake stays so.

        Args:
            tags: which; None is all.

        Raises:
            RequestError: an unknown tag.
            RunError: another call is in progress.
        """
        chosen = _checked(tags, TAGS)
        with self._alone("wake"):
            if WEIGHTS in chosen:
                self._residence.come_back()
            self._asleep -= chosen

    def flush_cache(self) -> None:
        """Free the key/value memory. No key and no value outlives a call in any case, so that nothing stale is read
        after an update. Raises `RunError` while another call is in progress."""
        with self._alone("flush_cache"):
            self._drop_decoder()

    def _drop_decoder(self) -> None:
        """Let go of the key/value memory and of recordings, which know where the weights were."""
        self._decoder = None
        if self.checkpoint.backbone.device.type == "cuda":
            torch.cuda.empty_cache()

    # One at a time

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise RunError(f"{what}: {self._doing} is in progress; wait until it has returned")
        self._doing = what
        try:
            yield
        finally:
            self._lock.release()

    def _refuse_without(self, *tags: str) -> None:
        """Raise `RunError` while one of them sleeps, and where the weights are no version's."""
        asleep = [tag for tag in tags if tag in self._asleep]
        if asleep:
            raise RunError(f"asleep: {', '.join(asleep)}; call wake() first")
        if self._torn is not None:
            raise RunError(f"the weights are a mixture, since {self._torn}; update them again")


def _checked(tags: Sequence[str] | None, default: Sequence[str]) -> set[str]:
    chosen = default if tags is None else [tags] if isinstance(tags, str) else tags
    unknown = [tag for tag in chosen if tag not in TAGS]
    if unknown:
        raise RequestError(f"tags={list(chosen)!r}: {unknown[0]!r} is unknown; known: {', '.join(TAGS)}")
    return set(chosen)
