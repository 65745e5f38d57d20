"""Prometheus metrics of a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dlm.decoding.options import StepReport
from dlm.serving.engine.queued import EngineStats

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
RATES = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)


class _LoadCollector(Collector):
    """Gauges read at scrape time."""

    def __init__(self, load: Callable[[], EngineStats]) -> None:
        self._load = load

    def collect(self) -> Iterator[Metric]:
        now = self._load()
        gauges = {
            "dlm_sequences_waiting": ("Sequences waiting for a batch slot", now.waiting),
            "dlm_sequences_running": ("Sequences being decoded", now.running),
            "dlm_arena_slots_used": ("Key/value slots in use", now.arena_used),
            "dlm_arena_slots": ("Key/value slots in total", now.arena_slots),
            "dlm_decoder_alive": ("1 while the decoder thread runs", int(now.alive)),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        forwards = CounterMetricFamily("dlm_forwards", "Forward passes", value=now.steps)
        yield forwards
        yield CounterMetricFamily("dlm_forward_sequences", "Sequences summed over forwards", value=now.canvases)


class Metrics:
    """Counters of one worker, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dlm_requests", "Requests by route and outcome", ["route", "outcome"], registry=self.registry
        )
        self.latency = Histogram(
            "dlm_request_seconds", "Time from request to answer", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.first_block = Histogram(
            "dlm_first_block_seconds", "Time from a request to its first finished block",
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.broken_streams = Counter("dlm_broken_streams", "Streams that ended with an error", registry=self.registry)
        self.prompt_tokens = Counter("dlm_prompt_tokens", "Prompt tokens", registry=self.registry)
        self.tokens = Counter("dlm_completion_tokens", "Tokens of answers as returned", registry=self.registry)
        self.tokens_per_forward = Histogram(
            "dlm_tokens_per_forward", "Tokens of an answer divided by its forwards",
            buckets=RATES, registry=self.registry,
        )  # fmt: skip
        self.rows = Counter("dlm_forward_rows", "Positions recomputed", registry=self.registry)

    def watch(self, load: Callable[[], EngineStats]) -> None:
        """Export the decoder's load."""
        self.registry.register(_LoadCollector(load))

    def count_forward(self, report: StepReport) -> None:
        """Count one forward."""
        self.rows.inc(report.num_rows)

    def count_answer(self, prompt_tokens: int, tokens: int, nfe: int) -> None:
        """Count one returned sample."""
        self.prompt_tokens.inc(prompt_tokens)
        self.tokens.inc(tokens)
        if nfe:
            self.tokens_per_forward.observe(tokens / nfe)

    def total(self, outcome: str | None = None) -> int:
        """Requests so far, all or those with the given outcome."""
        return int(
            sum(
                sample.value
                for metric in self.requests.collect()
                for sample in metric.samples
                if sample.name.endswith("_total") and outcome in (None, sample.labels["outcome"])
            )
        )

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)
