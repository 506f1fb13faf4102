"""What /metrics says about the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry, Metric

    from tarragon_hpc.gateway.state import SessionStats

_TOKEN_BUCKETS = (.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10)  # fmt: skip
_REQUEST_BUCKETS = (.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 25, 50, 100, 250)  # fmt: skip


class GatewayMetrics:
    """Counters and histograms of the HTTP side; seconds and tokens."""

    def __init__(self, registry: CollectorRegistry, stats: Callable[[], SessionStats]) -> None:
        self.requests = Counter(
            "tarragon_http_requests",
            "HTTP requests",
            ["path", "status"],
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "tarragon_prompt_tokens", "Tokens of admitted prompts", registry=registry
        )
        self.generation_tokens = Counter(
            "tarragon_generation_tokens", "Tokens given to clients", registry=registry
        )
        self.first_token = Histogram(
            "tarragon_time_to_first_token_seconds",
            "From admission to the first token of a choice",
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        self.inter_token = Histogram(
            "tarragon_inter_token_seconds",
            "Between two deliveries to a choice",
            buckets=_TOKEN_BUCKETS,
            registry=registry,
        )
        self.stream_gap = Histogram(
            "tarragon_stream_gap_seconds",
            "The longest time between two tokens of a sequence, taken when it ends",
            buckets=_TOKEN_BUCKETS,
            registry=registry,
        )
        self.streams_resumed = Counter(
            "tarragon_streams_resumed",
            "Readers that came back to a resumable stream",
            registry=registry,
        )
        self.generation_seconds = Histogram(
            "tarragon_generation_seconds",
            "From admission to the end of a request that succeeded",
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        registry.register(_SessionCollector(stats))


class _SessionCollector(Collector):
    """Reads the sessions when it is scraped."""

    def __init__(self, stats: Callable[[], SessionStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        yield GaugeMetricFamily(
            "tarragon_serving", "1 while requests are admitted", value=float(stats.serving)
        )
        yield GaugeMetricFamily(
            "tarragon_open_sequences", "Sequences whose end has not been read", value=stats.open
        )
        yield CounterMetricFamily(
            "tarragon_masked_expert_calls",
            "Calls of experts that were left out because nobody served the expert",
            value=stats.masked,
        )
        yield GaugeMetricFamily(
            "tarragon_waiting_sequences",
            "Sequences whose attention worker was lost and that wait for another one",
            value=stats.waiting,
        )
        yield CounterMetricFamily(
            "tarragon_moved_sequences",
            "How often a sequence was given to another attention worker",
            value=stats.moved,
        )
        resumed = {"restored": stats.restored, "recomputed": stats.recomputed}
        running = GaugeMetricFamily(
            "tarragon_running_sequences", "Sequences per attention worker", labels=["worker"]
        )
        for worker, count in stats.running_on.items():
            running.add_metric([worker], count)
        yield running
        for name, text, label, counts in (
            ("tarragon_sequences", "Sequences that ended, by how", "end", stats.ended),
            ("tarragon_dropped_deltas", "Token messages dropped", "cause", stats.dropped),
            ("tarragon_resumed_sequences", "Sequences that went on elsewhere", "how", resumed),
        ):
            family = CounterMetricFamily(name, text, labels=[label])
            for key, value in counts.items():
                family.add_metric([key], value)
            yield family
