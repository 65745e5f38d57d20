"""Weight management for rollouts: updates and versions, exclusive access, and sleep."""

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
"""Parts that can be put to sleep."""


class WeightControl:
    """A model whose weights can be updated and put to sleep.

    Only one call runs at a time: a call made while another is in progress, from a callback or another thread, raises
    `RunError` and changes nothing. So weights never change in the middle of a generation.

    Args:
        checkpoint: the model that decodes.
        trainer: the module being trained, of the same architecture; `checkpoint.backbone` itself if the weights are
            shared; None if there is none.
        weight_version: version of the current weights.

    Raises:
        ConfigError: the trainer's module is not a `Backbone`, or has a different architecture.
    """

    def __init__(self, checkpoint: Checkpoint, trainer: Backbone | None, weight_version: int) -> None:
        check_whole("weight_version", weight_version, 0)
        if trainer is not None and not isinstance(trainer, Backbone):
            raise ConfigError(f"trainer is a {type(trainer).__name__}; pass the Backbone inside it")
        if trainer is not None and trainer.config != checkpoint.backbone.config:
            raise ConfigError("trainer and checkpoint have different architectures; load both from one folder")
        self.checkpoint, self.trainer = checkpoint, trainer
        self._decoder: Decoder | None = None
        self._version = weight_version
        self._residence = WeightOffload(checkpoint.backbone)
        self._asleep: set[str] = set()
        self._torn: str | None = None
        self._lock, self._doing = threading.Lock(), ""

    @property
    def weight_version(self) -> int:
        """Version of the weights that the next rollout is decoded with."""
        return self._version

    @property
    def shared(self) -> bool:
        """Whether the weights are shared with the trainer."""
        return self.trainer is self.checkpoint.backbone

    @property
    def asleep(self) -> frozenset[str]:
        """The parts of `TAGS` that are asleep."""
        return frozenset(self._asleep)

    @property
    def torn(self) -> str | None:
        """Why the weights are a mix of two versions and must not be used; None if they are consistent."""
        return self._torn

    # Weights

    def update_weights(self, named_tensors: NamedTensors, *, version: int) -> None:
        """Update the weights in place.

        Args:
            named_tensors: all of the model's tensors, named as in the family's checkpoints or as `Backbone`'s
                parameters; wrapper and trainer prefixes, optimizer tensors and copies of a tied weight are allowed.
                Any floating-point dtype, any device.
            version: version reported by rollouts made with them.

        Raises:
            CheckpointError: missing, unknown, misshapen, duplicate or non-numeric tensors (named); nothing was changed.
            RunError: another call is in progress, or the weights are asleep or shared with the trainer; nothing was
                changed.
        """
        tensors = gathered(named_tensors)
        with self._rewriting(shapes_of(tensors), version) as writer:
            writer.write_all(tensors)

    def update_weights_from_disk(self, folder: str | Path, *, version: int) -> None:
        """Update the weights from a safetensors or `torch.distributed.checkpoint` folder, read completely before the
        first is written. Raises as `update_weights`; `CheckpointError` also for a folder that cannot be read or whose
        config.json has a different architecture."""
        source = folder_source(folder, self.checkpoint.backbone)
        with self._rewriting(source_shapes(source), version) as writer:
            source.verify(writer.names)
            writer.write_all({name: source.read(name) for name in writer.names})

    def update_weights_from_stream(
        self, shapes: Shapes, named_tensors: Iterable[tuple[str, Tensor]], *, version: int
    ) -> None:
        """Update the weights from a stream; each tensor is written on arrival and may be freed afterwards.

        Args:
            shapes: shape and dtype of every tensor in the stream.
            named_tensors: the stream, each tensor once, in any order.
            version: as in `update_weights`.

        Raises:
            As `update_weights`, and whatever `named_tensors` raises. If something had been written by then, the weights
            are a mix of two versions: later calls raise `RunError` until an update succeeds.
        """
        with self._rewriting(shapes, version) as writer:
            writer.write_stream(named_tensors)

    def update_weights_from_group(self, group: Any = None, *, src: int = 0) -> None:
        """Receive weights and their version from process `src` of a torch.distributed group, which calls
        `dlm.rl.send_weights`.

        Args:
            group: None is the default group.
            src: rank of the sender in the default group.

        Raises:
            CheckpointError: one of the group's processes cannot take them; all of them raise and nothing was changed.
            As `update_weights_from_stream`, if the group fails partway.
        """
        news = broadcast.announced(src, group)
        with self._rewriting(news.shapes, news.version, partial(broadcast.agree, group=group)) as writer:
            writer.write_stream(broadcast.received(news, src, group))

    def sync(self, *, version: int) -> None:
        """Take over the trainer's current weights. Shared weights only get the new version; otherwise they are copied,
        with an adapter in training merged in.

        Raises:
            RunError: there is no trainer module; or as `update_weights`.
        """
        if self.trainer is None:
            raise RunError("sync: there is no trainer module; use update_weights")
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
        """Raise `CheckpointError` unless the names and shapes in this folder fit the model; works while asleep."""
        self.check_shapes(source_shapes(folder_source(folder, self.checkpoint.backbone)))

    def check_shapes(self, shapes: Shapes) -> None:
        """Raise `CheckpointError` unless these names, shapes and dtypes fit the model; works while asleep."""
        with torch.device("meta"):
            like = Backbone(self.checkpoint.backbone.config)
        WeightWriter(shapes, self.checkpoint.family, like)

    @contextmanager
    def _rewriting(
        self, shapes: Shapes, version: int, agree: Callable[[str | None], None] = lambda fault: None
    ) -> Iterator[WeightWriter]:
        """Check everything up front; remember a failure after the first write.

        `agree` is called with the fault (or None) before anything is written, and raises if the update must not go on.
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
                    self._torn = f"the update to version {version} failed partway ({type(error).__name__}: {error})"
                raise
            self._version, self._torn = version, None

    def _writer(self, shapes: Shapes, version: int) -> WeightWriter:
        check_whole("version", version, 0)
        if self.shared:
            raise RunError("the weights are shared with the trainer; change them there and call sync(version=)")
        if WEIGHTS in self._asleep:
            raise RunError("the weights are asleep; call wake(['weights']) before an update")
        return WeightWriter(shapes, self.checkpoint.family, self.checkpoint.backbone)

    # Sleep

    def sleep(self, tags: Sequence[str] | None = None) -> None:
        """Free device memory: drop the decoder's KV cache and CUDA graphs (`kv_cache`), move the weights to the host
        (`weights`). Parts already asleep stay asleep.

        Args:
            tags: parts to put to sleep; None is all, except weights shared with the trainer.

        Raises:
            RequestError: an unknown tag.
            RunError: another call is in progress, or `weights` was given for shared weights.
        """
        chosen = _checked(tags, [KV_CACHE] if self.shared else TAGS)
        with self._alone("sleep"):
            if WEIGHTS in chosen and self.shared:
                raise RunError("weights shared with the trainer cannot be offloaded; use sleep(['kv_cache'])")
            self._drop_decoder()
            if WEIGHTS in chosen:
                self._residence.leave()
            self._asleep |= chosen

    def wake(self, tags: Sequence[str] | None = None) -> None:
        """Undo `sleep`; the weights are restored bit for bit. Parts already awake stay awake.

        Args:
            tags: parts to wake; None is all.

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
        """Free the KV cache. Its contents never outlive a call, so nothing stale is read after an update either way.
        Raises `RunError` while another call is in progress."""
        with self._alone("flush_cache"):
            self._drop_decoder()

    def _drop_decoder(self) -> None:
        """Release the KV cache and CUDA graphs, which hold the addresses of the weights."""
        self._decoder = None
        if self.checkpoint.backbone.device.type == "cuda":
            torch.cuda.empty_cache()

    # One at a time

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise RunError(f"{what}: {self._doing} is in progress; wait until it returns")
        self._doing = what
        try:
            yield
        finally:
            self._lock.release()

    def _refuse_without(self, *tags: str) -> None:
        """Raise `RunError` if one of them is asleep, or the weights are a mix of two versions."""
        asleep = [tag for tag in tags if tag in self._asleep]
        if asleep:
            raise RunError(f"asleep: {', '.join(asleep)}; call wake() first")
        if self._torn is not None:
            raise RunError(f"the weights are a mix of two versions: {self._torn}; update them again")


def _checked(tags: Sequence[str] | None, default: Sequence[str]) -> set[str]:
    chosen = default if tags is None else [tags] if isinstance(tags, str) else tags
    unknown = [tag for tag in chosen if tag not in TAGS]
    if unknown:
        raise RequestError(f"tags={list(chosen)!r}: {unknown[0]!r} is unknown; known: {', '.join(TAGS)}")
    return set(chosen)
