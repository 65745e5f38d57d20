"""Records repeating forwards once and replays them: CUDA graphs of the steps that use the cache.

Without a graph, a GPU waits for the host between the hundreds of kernels of a forward over few rows. A recording has
fixed shapes and addresses, so a step's batch is copied into the slightly larger buffers of a `Frame`.

A `Recorder` does the recording; a step that cannot be recorded runs normally.
"""

from __future__ import annotations

import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dlm.decoding.kv.arena import Arena
from dlm.decoding.packing import Batch
from dlm.models.attention import AttentionBackend, VarlenAttention, kernels
from dlm.models.attention.frames import Frame, FrameAttention, FrameShape
from dlm.models.attention.segments import Segment
from dlm.models.backbone import Backbone
from dlm.models.experts import has_grouped_kernel

MAX_ROWS = 2048
"""Most rows of a recorded forward: with more, the GPU stays busy while the host launches the next kernels."""

MAX_RECORDINGS = 64
"""Recordings kept; the least recently replayed is evicted."""

PATIENCE = 3
"""A shape is recorded at its this-many-th occurrence, so that rare ones cost nothing."""

WARM_UPS = 2
"""Forwards before the captured one: libraries choose kernels and allocate workspaces in the first ones."""

Play = Callable[[], None]
"""Repeats recorded work on the buffers' current contents."""


class Recorder(Protocol):
    """Records work on fixed buffers for replay."""

    def record(self, work: Play) -> Play:
        """Return a function that repeats `work`; may call `work` any number of times."""


class CudaRecorder:
    """Captures work as CUDA graphs in one memory pool: they replay one at a time, and what one leaves in the pool is
    never read after the next.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.pool = torch.cuda.graph_pool_handle()

    def record(self, work: Play) -> Play:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                for _ in range(WARM_UPS):
                    work()
        finally:
            current.wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may keep using the device while this one captures
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


def choose_recorder(backbone: Backbone, backend: AttentionBackend, given: Recorder | None = None) -> Recorder | None:
    """The recorder for the model's forwards; None if a replay would not be equivalent.

    Recordings use `VarlenAttention`. By default there is a recorder on CUDA, unless a forward waits for the host: when
    processes share the model, or when the rows of each expert are counted there.
    """
    if given is not None or backend is not VarlenAttention or backbone.device.type != "cuda":
        return given if backend is VarlenAttention else None
    if any(layer.total is not None for layer in backbone.layers):
        return None
    if backbone.config.experts is not None:
        probe = torch.empty(0, dtype=backbone.dtype, device=backbone.device)
        grouped = has_grouped_kernel(probe)
        if not grouped or torch.cuda.get_device_capability(backbone.device) < (9, 0):
            return None
    return CudaRecorder(backbone.device)


@dataclass(frozen=True)
class Recording:
    """A forward over the buffers of a frame."""

    frame: Frame
    play: Play


class Graphs:
    """The recorded forwards of one decoder.

    Args:
        backbone: the model; recordings are dropped when its weights move in memory.
        arena: holds keys and values.
        recorder: None records nothing.

    Attributes:
        captures: number of forwards recorded.
        replays: number of forwards replayed.
    """

    def __init__(self, backbone: Backbone, arena: Arena, recorder: Recorder | None) -> None:
        self.backbone, self.arena, self.recorder = backbone, arena, recorder
        self.captures = self.replays = 0
        self._recordings: OrderedDict[FrameShape, Recording] = OrderedDict()
        self._seen: Counter[FrameShape] = Counter()
        self._weights = [module._parameters for module in backbone.modules() if module._parameters]
        self._addresses: list[int] = []
        self._hidden: Tensor | None = None

    def forward(self, batch: Batch) -> Tensor | None:
        """Hidden states `[num_rows, hidden]` of a batch, valid until the next forward; None if its kind is not recorded
        or its shape has not occurred often enough."""
        if self.recorder is None:
            return None
        segments, kernel = repeating(batch), kernels.varlen_kernel()
        if segments is None or kernel is None:
            return None
        in_place = kernels.reads_in_place(kernel, self.backbone.device, self.backbone.dtype)
        if not in_place and sum(segment.num_keys for segment in segments) > self.arena.ranges.capacity:
            return None  # several windows gather the same keys, which the memory plan has no room for
        self._forget_what_moved()
        drafts = batch.drafts() if self.backbone.has_drafter else None
        shape = FrameShape.of(segments, in_place=in_place, drafts=drafts is not None)
        recording = self._recordings.get(shape)
        if recording is None:
            self._seen[shape] += 1
            if self._seen[shape] < PATIENCE:
                return None
            frame = Frame(shape, self.arena.spare, self.backbone.device)
        else:
            frame = recording.frame
        frame.fill(segments, batch.token_ids(), batch.positions(), drafts)
        if recording is None:
            recording = self._record(self.recorder, frame, kernel)
            if recording is None:
                return None
        self._recordings.move_to_end(shape)
        recording.play()
        self.replays += 1
        return self._output()[: batch.num_rows]

    def _record(self, recorder: Recorder, frame: Frame, kernel: kernels.VarlenKernel) -> Recording | None:
        """Record a forward over a filled frame; on failure, return None and disable recording."""
        keys, values = self.arena.keys, self.arena.values
        if keys is None or values is None:
            raise RuntimeError("windows attend to an arena that has no allocated range")
        attention, output = FrameAttention(frame, kernel, keys, values), self._output()[: frame.shape.rows]

        def work() -> None:
            output.copy_(self.backbone(frame.token_ids, frame.positions, attention, drafts=frame.drafts))

        try:
            recording = Recording(frame, recorder.record(work))
        except Exception as error:
            self.recorder = None
            self._recordings.clear()
            warnings.warn(
                f"recording CUDA graphs failed; decoding continues more slowly: {type(error).__name__}: {error}; "
                "enforce_eager=true disables recording",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        self.captures += 1
        self._recordings[frame.shape] = recording
        if len(self._recordings) > MAX_RECORDINGS:
            self._recordings.popitem(last=False)
        return recording

    def _output(self) -> Tensor:
        """Buffer `[rows, hidden]` for the hidden states of every recording, outside the recorder's memory pool."""
        if self._hidden is None:
            shape = (MAX_ROWS, self.backbone.config.hidden_size)
            self._hidden = torch.empty(shape, dtype=self.backbone.dtype, device=self.backbone.device)
        return self._hidden

    def _forget_what_moved(self) -> None:
        """Drop recordings once weights or arena have moved: they hold addresses and would read the old memory."""
        held = (one for parameters in self._weights for one in parameters.values())
        addresses = [one.data_ptr() for one in held if one is not None]
        if self.arena.keys is not None and self.arena.values is not None:
            addresses += [self.arena.keys.data_ptr(), self.arena.values.data_ptr()]
        if addresses != self._addresses:
            self._recordings.clear()
            self._addresses = addresses


def repeating(batch: Batch) -> Sequence[Segment] | None:
    """The batch's windows, all reading the arena; None if it is not of the recorded kind: few rows, fed with tokens,
    every window on the arena or convertible to it."""
    if batch.num_rows > MAX_ROWS or any(entry.canvas.request.engine.smoothing is not None for entry in batch.entries):
        return None
    segments = [segment.through_arena() for segment in batch.segments]
    return None if None in segments else [segment for segment in segments if segment is not None]
