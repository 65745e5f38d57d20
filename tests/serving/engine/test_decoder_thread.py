"""The decoder's thread: waiting for a batch, failures in mid-batch, other work between steps."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import DualCache
from dlm.decoding.options import DecoderOptions, StepReport
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Completion, Request
from dlm.decoding.samplers import Fixed
from dlm.serving.engine import decoder_thread
from dlm.serving.engine.decoder_thread import DecoderThread
from dlm.serving.engine.queued import Draining, EnginePaused, QueueFull, Unavailable
from tests.clock import Clock
from tests.decoding.worlds import SPECIAL, tiny_model
from tests.running import TIMEOUT, wait_until

PARAMS = SamplingParams(gen_length=16, block_length=8, steps=16, temperature=0.0, ignore_eos=True, seed=1)


def ask(name: str, prompt: tuple[int, ...] = (5, 6, 7), **more: Any) -> Request:
    return Request(name, prompt, dataclasses.replace(PARAMS, **more), DualCache(), Fixed())


class Heard:
    """Completions, as they come."""

    def __init__(self) -> None:
        self.all: list[Completion] = []

    def __call__(self, completion: Completion) -> None:
        self.all.append(completion)

    def wait(self, count: int) -> list[Completion]:
        wait_until(lambda: len(self.all) >= count, f"{count} completions were heard")
        return self.all


class Pause:
    """Stops the decoder's thread behind its first forward, until it is told to go on."""

    def __init__(self) -> None:
        self._stands, self._go_on = threading.Event(), threading.Event()

    def __call__(self, report: StepReport) -> None:
        self._stands.set()
        assert self._go_on.wait(TIMEOUT), "nobody let it go on"

    @contextmanager
    def reached(self) -> Iterator[None]:
        """The thread stands meanwhile, in mid-generation."""
        assert self._stands.wait(TIMEOUT), "no forward was made"
        try:
            yield
        finally:
            self._go_on.set()


@pytest.fixture(name="make")
def maker() -> Iterator[Callable[..., DecoderThread]]:
    made: list[DecoderThread] = []

    def make(**options: Any) -> DecoderThread:
        seqs = options.pop("max_num_seqs", 4)
        decoder = Decoder(tiny_model().backbone, SPECIAL, DecoderOptions(max_num_seqs=seqs, arena_tokens=2000))
        made.append(DecoderThread(decoder, **options))
        return made[-1]

    yield make
    for thread in made:
        if thread.load().alive:
            thread.drain(TIMEOUT)


def solo(request: Request) -> tuple[int, ...]:
    decoder = Decoder(tiny_model().backbone, SPECIAL, DecoderOptions(arena_tokens=2000))
    [completion] = decoder.run([request])
    return completion.token_ids


def test_idle_requests_start_at_once_and_join_those_that_run(make: Callable[..., DecoderThread]) -> None:
    thread, heard = make(), Heard()
    thread.start()
    requests = [ask(f"r{index}", (5, 6, index + 7)) for index in range(10)]
    for request in requests:
        thread.submit(request, heard)
    done = {one.request_id: one.token_ids for one in heard.wait(10)}
    assert done == {request.id: solo(request) for request in requests}
    load = thread.load()
    assert (load.running, load.waiting, load.arena_used) == (0, 0, 0)
    assert sum(size * count for size, count in load.sizes.items()) == load.canvases


def test_a_batch_fires_when_the_oldest_has_waited_long_enough(
    make: Callable[..., DecoderThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread sleeps for as long as is left, and is woken here."""
    thread, heard, clock = make(max_wait_time=10.0), Heard(), Clock()
    sleeps: list[float | None] = []
    sleep = thread._condition.wait

    def asleep(seconds: float | None = None) -> None:
        sleeps.append(seconds)
        sleep()

    def wake() -> None:
        with thread._condition:
            thread._condition.notify()

    monkeypatch.setattr(decoder_thread, "time", clock)
    monkeypatch.setattr(thread._condition, "wait", asleep)
    thread.start()
    thread.submit(ask("a"), heard)
    wait_until(lambda: sleeps[-1:] == [10.0], "it waited for others")
    clock.now = 4.0
    thread.submit(ask("b"), heard)
    wait_until(lambda: sleeps[-1] == 6.0, "it waited for what was left")
    assert (thread.load().waiting, thread.load().steps) == (2, 0)
    clock.now = 10.0
    wake()
    heard.wait(2)
    assert thread.load().sizes == {2: 16}


def test_a_full_batch_fires_before_that(make: Callable[..., DecoderThread]) -> None:
    thread, heard = make(max_wait_time=10 * TIMEOUT), Heard()
    thread.start()
    for name in "abcd":
        thread.submit(ask(name), heard)
    heard.wait(4)
    assert thread.load().sizes == {4: 16}


def test_the_queue_is_bounded(make: Callable[..., DecoderThread]) -> None:
    thread, heard = make(max_wait_time=10 * TIMEOUT, queue_size=3, max_num_seqs=100), Heard()
    thread.start()
    object.__setattr__(thread.decoder.options, "max_num_seqs", 0)  # no user may ask for that: nothing begins
    thread.submit(ask("a", n=2), heard)
    with pytest.raises(QueueFull):
        thread.submit(ask("b", n=2), heard)
    thread.submit(ask("c"), heard)
    object.__setattr__(thread.decoder.options, "max_num_seqs", 1)
    thread.cancel("a")
    thread.cancel("c")
    wait_until(lambda: thread.load().waiting == 0, "the queue was empty")


def test_a_failing_request_is_told_alone(make: Callable[..., DecoderThread], monkeypatch: pytest.MonkeyPatch) -> None:
    thread, heard = make(), Heard()
    forward = thread.decoder.backbone.forward

    def raising(token_ids: Tensor, *arguments: Any) -> Tensor:
        if (token_ids == 3).any():
            raise RuntimeError("broken")
        return forward(token_ids, *arguments)

    monkeypatch.setattr(thread.decoder.backbone, "forward", raising)
    thread.start()
    requests = [ask("bad", (3, 4)), ask("good", (5, 6)), ask("better", (7, 8))]
    for request in requests:
        thread.submit(request, heard)
    done = {one.request_id: one for one in heard.wait(3)}
    assert done["bad"].fault == "failed"
    assert [done[name].error for name in ("good", "better")] == [None, None]
    assert done["good"].token_ids == solo(requests[1])
    thread.submit(ask("later", (5, 6)), heard)
    assert heard.wait(4)[-1].token_ids == solo(requests[1])


def test_other_work_goes_on_between_steps(make: Callable[..., DecoderThread]) -> None:
    pause = Pause()
    thread, heard = make(on_step=pause), Heard()
    results: list[Any] = []
    seen: list[int] = []

    def slices() -> Iterator[int | None]:
        for _ in range(5):
            seen.append(thread.decoder.stats.num_steps)
            yield None
        yield 42

    def broken() -> Iterator[None]:
        yield None
        raise ValueError("no")

    thread.start()
    thread.submit(ask("a"), heard)
    with pause.reached():
        thread.work(slices(), lambda *news: results.append(news))
        thread.work(broken(), lambda *news: results.append(news))
    heard.wait(1)
    wait_until(lambda: len(results) == 2, "the work was done")
    assert results[0] == (42, None)
    assert isinstance(results[1][1], ValueError)
    assert seen == [1, 2, 3, 4, 5]


def test_a_listener_that_is_gone_harms_nobody(make: Callable[..., DecoderThread]) -> None:
    thread, heard = make(), Heard()

    def gone(completion: Completion) -> None:
        raise RuntimeError("Event loop is closed")

    thread.start()
    thread.submit(ask("a"), gone)
    thread.submit(ask("b"), heard)
    assert heard.wait(1)[0].error is None
    assert thread.load().alive


def test_a_decoder_that_cannot_go_on_tells_everybody(
    make: Callable[..., DecoderThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    thread, heard = make(), Heard()

    def dead(*_: Any) -> Any:
        raise RuntimeError("dead")

    monkeypatch.setattr(thread.decoder, "step", dead)
    monkeypatch.setattr(thread.decoder, "step_apart", dead)
    thread.start()
    thread.submit(ask("a"), heard)
    assert heard.wait(1)[0].fault == "failed"
    wait_until(lambda: not thread.load().alive, "the thread ended")
    with pytest.raises(Draining):
        thread.submit(ask("b"), heard)


def test_draining_finishes_what_is_here_and_takes_no_more(make: Callable[..., DecoderThread]) -> None:
    pause = Pause()
    thread, heard = make(on_step=pause), Heard()
    thread.start()
    for index in range(8):
        thread.submit(ask(f"r{index}"), heard)
    ends = threading.Thread(target=thread.drain, args=(TIMEOUT,))
    with pause.reached():
        ends.start()
        wait_until(lambda: thread._ending, "it drained")
        with pytest.raises(Draining):
            thread.submit(ask("late"), heard)
    ends.join(TIMEOUT)
    assert len(heard.all) == 8
    assert not thread.load().alive


def test_what_is_not_finished_in_time_is_told(make: Callable[..., DecoderThread]) -> None:
    """The thread goes on when the time is up."""
    pause, ended = Pause(), []
    thread, heard = make(on_step=pause), Heard()
    thread.start()
    thread.submit(ask("a"), heard)
    ends = threading.Thread(target=lambda: ended.append(thread.drain(0.0)))
    with pause.reached():
        ends.start()
        wait_until(lambda: thread._abandoned, "the time was up")
    ends.join(TIMEOUT)
    assert ended == [False]
    assert [one.fault for one in heard.all] == ["draining"]


# Tasks, pauses


class Results:
    """What tasks came to."""

    def __init__(self) -> None:
        self.all: list[tuple[Any, Exception | None]] = []

    def __call__(self, result: Any, error: Exception | None) -> None:
        self.all.append((result, error))

    def wait(self, count: int) -> list[tuple[Any, Exception | None]]:
        wait_until(lambda: len(self.all) >= count, f"{count} results were heard")
        return self.all


LONG = {"gen_length": 160, "steps": 160}


def test_a_task_waits_for_what_has_begun_and_lets_the_rest_wait(make: Callable[..., DecoderThread]) -> None:
    """Of seven samples four fit at once: a request of which one has begun is finished, another waits."""
    pause, heard, results = Pause(), Heard(), Results()
    thread = make(on_step=pause)
    thread.pause()
    thread.start()
    for name in ("a", "b"):
        thread.submit(ask(name, n=3, **LONG), heard)
    thread.submit(ask("c", **LONG), heard)
    thread.resume()
    seen: list[Any] = []

    def task() -> str:
        seen.append((sorted({one.request_id for one in heard.all}), thread.decoder.has_work, thread.load().waiting))
        return "done"

    with pause.reached():
        assert len(thread.decoder.scheduler.running) == 4
        thread.exclusively(task, results)
        thread.submit(ask("d"), heard)
    assert results.wait(1) == [("done", None)]
    assert seen == [(["a", "b"], False, 2)]
    done = {one.request_id: one.token_ids for one in heard.wait(8)}
    assert done["c"] == solo(ask("c", **LONG))
    assert done["d"] == solo(ask("d"))


def test_other_work_that_has_begun_is_finished_before_a_task(make: Callable[..., DecoderThread]) -> None:
    thread, results = make(), Results()
    began, go_on = threading.Event(), threading.Event()

    def slices(name: str) -> Iterator[str | None]:
        began.set()
        assert go_on.wait(TIMEOUT)
        yield None
        yield name

    thread.start()
    thread.work(slices("first"), results)
    thread.work(slices("second"), results)
    assert began.wait(TIMEOUT)
    thread.exclusively(lambda: "task", results)
    go_on.set()
    assert [result for result, _ in results.wait(3)] == ["first", "task", "second"]


def test_what_is_paused_stands_still_and_then_goes_on(make: Callable[..., DecoderThread]) -> None:
    """Each task that is refused is a round of the thread's loop, in which it could have gone on."""
    pause, heard, results = Pause(), Heard(), Results()
    thread = make(on_step=pause)
    thread.start()
    thread.submit(ask("a", **LONG), heard)
    with pause.reached():
        thread.pause()
    thread.submit(ask("b"), heard)
    for rounds in range(1, 5):
        thread.exclusively(lambda: "done", results)
        assert isinstance(results.wait(rounds)[-1][1], EnginePaused)
    load = thread.load()
    assert (load.steps, load.running, load.waiting) == (1, 1, 1)
    assert heard.all == []
    thread.resume()
    done = {one.request_id: one.token_ids for one in heard.wait(2)}
    assert done == {"a": solo(ask("a", **LONG)), "b": solo(ask("b"))}


def test_a_task_among_what_is_paused_is_refused_unless_that_is_given_up(make: Callable[..., DecoderThread]) -> None:
    pause, heard, results = Pause(), Heard(), Results()
    thread = make(on_step=pause)
    thread.start()
    thread.submit(ask("a", **LONG), heard)
    with pause.reached():
        thread.pause()
    thread.submit(ask("b"), heard)
    thread.exclusively(lambda: "done", results)
    assert isinstance(results.wait(1)[0][1], EnginePaused)
    assert heard.all == []
    thread.exclusively(lambda: "done", results, abort="we stop")
    assert results.wait(2)[1] == ("done", None)
    assert [(one.request_id, one.fault, one.error) for one in heard.wait(2)] == [
        ("a", "aborted", "we stop"),
        ("b", "aborted", "we stop"),
    ]
    assert (thread.load().running, thread.load().waiting, thread.load().arena_used) == (0, 0, 0)
    thread.submit(ask("c"), heard)
    thread.resume()
    assert heard.wait(3)[2].token_ids == solo(ask("c"))


def test_a_task_may_make_the_thread_refuse_and_take_again(make: Callable[..., DecoderThread]) -> None:
    thread, heard, results = make(), Heard(), Results()
    thread.start()
    thread.pause()
    thread.submit(ask("a"), heard)
    thread.work(iter([1]), results)
    thread.exclusively(lambda: thread.refuse("asleep"), results)
    results.wait(2)
    assert [(one.fault, one.error) for one in heard.all] == [("unavailable", "asleep")]
    assert isinstance(results.all[0][1], Unavailable)
    for use in (lambda: thread.submit(ask("b"), heard), lambda: thread.work(iter([1]), results)):
        with pytest.raises(Unavailable, match="asleep"):
            use()
    thread.exclusively(lambda: thread.refuse(None), results)
    results.wait(3)
    thread.resume()
    thread.submit(ask("b"), heard)
    assert heard.wait(2)[1].token_ids == solo(ask("b"))


def test_a_failing_task_harms_nobody_and_a_late_one_is_refused(make: Callable[..., DecoderThread]) -> None:
    thread, heard, results = make(), Heard(), Results()
    thread.start()
    thread.exclusively(lambda: 1 // 0, results)
    assert isinstance(results.wait(1)[0][1], ZeroDivisionError)
    thread.pause()
    thread.submit(ask("a"), heard)
    assert thread.drain(TIMEOUT)
    assert heard.all[0].token_ids == solo(ask("a"))
    with pytest.raises(Draining):
        thread.exclusively(lambda: None, results)
