"""`GET /metrics`, by the official Prometheus client. All names begin with `ring_`; seconds and bytes, as is the custom."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ring.answers import Completion
from ring.wire.clients import Lap, Status

PASSAGE = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
PASSAGE_NS = [int(seconds * 1e9) for seconds in PASSAGE]
PARTS = ("queue", "compute", "send", "wire")
REQUEST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
STATES = ("forming", "mismatch", "ready")


class Metrics:
    """What the gateway counts, and what the head's last Status says."""

    def __init__(self) -> None:
        self.registry = to = CollectorRegistry()
        self.status: Status | None = None
        self.registry.register(RingStatus(self))
        ProcessCollector(namespace="ring_gateway", registry=self.registry)
        self.laps = Laps()
        self.registry.register(self.laps)
        self.requests = Counter("ring_http_requests", "HTTP requests answered", ["path", "status"], registry=to)
        self.request_seconds = Histogram(
            "ring_http_request_seconds",
            "From an HTTP request's headers to its answer's end",
            ["path"],
            buckets=REQUEST,
            registry=to,
        )
        self.in_progress = Gauge("ring_http_requests_in_progress", "HTTP requests being answered", registry=to)
        self.failures = Counter("ring_failures", "Requests to generate that failed, by the error's code", ["code"], registry=to)
        self.prompt_tokens = Counter("ring_prompt_tokens", "Prompt tokens of this gateway's finished generations", registry=to)
        self.tokens = Counter("ring_generated_tokens", "Tokens generated through this gateway", registry=to)
        self.queued_seconds = Histogram("ring_queued_seconds", "Wait for admission at the head", buckets=REQUEST, registry=to)
        self.ttft_seconds = Histogram(
            "ring_time_to_first_token_seconds", "From arrival at the head", buckets=REQUEST, registry=to
        )
        self.itl_seconds = Histogram(
            "ring_inter_token_latency_seconds", "Mean of each generation, at the head", buckets=PASSAGE, registry=to
        )

    def answered(self, answers: list[Completion]) -> None:
        """Generations have ended, well or not."""
        for answer in answers:
            self.tokens.inc(len(answer.token_ids))
            self.prompt_tokens.inc(answer.prompt_tokens)
            if answer.timings is not None:
                self.queued_seconds.observe(answer.timings.queued_s)
                if answer.timings.ttft_s is not None:
                    self.ttft_seconds.observe(answer.timings.ttft_s)
                if answer.timings.itl_s is not None:
                    self.itl_seconds.observe(answer.timings.itl_s)

    def render(self, status: Status | None) -> bytes:
        """The page that Prometheus reads."""
        self.status = status
        return generate_latest(self.registry)


class Tally:
    """A histogram's counts. Cheaper than the official one's, which would be updated a dozen times for every lap."""

    def __init__(self) -> None:
        self.counts = [0] * (len(PASSAGE_NS) + 1)
        self.sum_ns = 0

    def add(self, ns: int) -> None:
        """One duration."""
        self.counts[bisect_left(PASSAGE_NS, ns)] += 1
        self.sum_ns += ns

    def samples(self) -> tuple[list[tuple[str, float]], float]:
        """As HistogramMetricFamily takes them: each bucket counts what the smaller ones do too."""
        bounds = [*map(str, PASSAGE), "+Inf"]
        return list(zip(bounds, accumulate(self.counts), strict=True)), self.sum_ns / 1e9


class Laps(Collector):
    """Where the time of every lap of the ring went, stage by stage."""

    def __init__(self) -> None:
        self.whole = Tally()
        self.parts: dict[int, list[Tally]] = {}
        self.bytes: dict[int, int] = {}

    def add(self, lap: Lap) -> None:
        """A microbatch has come round."""
        self.whole.add(lap.duration_ns)
        for hop in lap.hops:
            tallies = self.parts.get(hop.stage)
            if tallies is None:
                tallies = self.parts[hop.stage] = [Tally() for _ in PARTS]
                self.bytes[hop.stage] = 0
            for tally, ns in zip(tallies, (hop.queue_ns, hop.compute_ns, hop.send_ns, hop.wire_ns), strict=True):
                tally.add(ns)
            self.bytes[hop.stage] += hop.bytes

    def collect(self) -> Iterable[Metric]:
        """What is shown now."""
        whole = HistogramMetricFamily("ring_lap_seconds", "One microbatch once around the ring")
        whole.add_metric([], *self.whole.samples())
        yield whole
        words = "A stage's part of every lap: queue, compute, send (encode), wire (until the next stage has it)"
        stages = HistogramMetricFamily("ring_stage_seconds", words, labels=["stage", "part"])
        received = CounterMetricFamily("ring_stage_received_bytes", "Bytes that arrived at a stage", labels=["stage"])
        for stage, tallies in self.parts.items():
            for part, tally in zip(PARTS, tallies, strict=True):
                stages.add_metric([str(stage), part], *tally.samples())
            received.add_metric([str(stage)], self.bytes[stage])
        yield stages
        yield received


class RingStatus(Collector):
    """The head's Status as gauges; without an answer of the head only `ring_up` 0."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand, so that registering reads no status."""
        return []

    def collect(self) -> Iterable[Metric]:
        """What is shown now."""
        status = self.metrics.status
        yield gauge("ring_up", "1 while tokens can flow", float(status is not None and status.state == "ready"))
        if status is None:
            return
        info = GaugeMetricFamily("ring_info", "The model that is served", labels=["model", "dtype"])
        info.add_metric([status.model, status.dtype], 1)
        yield info
        state = GaugeMetricFamily("ring_state", "1 for the state that the ring is in", labels=["state"])
        for name in STATES:
            state.add_metric([name], float(name == status.state))
        yield state
        yield gauge("ring_stages", "Stages in the ring", len(status.stages))
        yield gauge("ring_running_sequences", "Sequences that hold a slot", status.running)
        yield gauge("ring_waiting_sequences", "Requests in the head's queue", status.waiting)
        yield gauge("ring_microbatches_in_flight", "Microbatches under way", status.in_flight)
        yield gauge("ring_kv_tokens", "KV cache of the smallest stage, in tokens", status.kv_tokens)
        yield gauge("ring_kv_reserved_tokens", "KV cache reserved by running sequences, in tokens", status.kv_used)
        yield gauge("ring_tokens_per_second", "New tokens over the last ten seconds, of all clients", status.tokens_per_s)
        yield gauge("ring_head_finished", "Generations finished since the head started, of all clients", status.finished)
        yield gauge("ring_head_failed", "Requests failed since the head started, of all clients", status.failed)
        yield gauge("ring_head_uptime_seconds", "Since the head started", status.uptime_s)
        stages = (
            ("ring_stage_kv_used_tokens", "KV cache in use on a stage, in tokens", [s.kv_used for s in status.stages]),
            ("ring_stage_kv_tokens", "KV cache of a stage, in tokens", [s.info.kv_tokens for s in status.stages]),
            ("ring_stage_resident_bytes", "Memory of a stage's process", [s.resident_bytes for s in status.stages]),
            ("ring_stage_refused_messages", "Messages that a stage has refused", [s.refused for s in status.stages]),
        )
        for name, words, values in stages:
            family = GaugeMetricFamily(name, words, labels=["stage"])
            for stage, value in zip(status.stages, values, strict=True):
                family.add_metric([str(stage.info.stage)], value)
            yield family


def gauge(name: str, words: str, value: float) -> GaugeMetricFamily:
    """A single figure."""
    return GaugeMetricFamily(name, words, value=value)
