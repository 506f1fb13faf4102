"""What Prometheus sees of the head. The gateway's `/metrics` exposes the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.registry import Collector

_FAILOVER_BUCKETS = (
    .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 100,
)  # fmt: skip

WorkerStat = tuple[str, str, float]
"""(worker, name of the statistic, value)."""


class HeadMetrics:
    """The head's own counters, in a registry of their own (one per run, not per process)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.epoch = Gauge(
            "tarragon_ert_epoch",
            "Epoch of the published expert routing table",
            registry=self.registry,
        )
        self.workers = Gauge(
            "tarragon_workers",
            "Workers by role and state",
            ["role", "state"],
            registry=self.registry,
        )
        self.lost = Counter(
            "tarragon_workers_lost",
            "Workers that were lost without being asked to leave",
            ["role"],
            registry=self.registry,
        )
        self.start_seconds = Histogram(
            "tarragon_worker_start_seconds",
            "From the start of a worker's process until it served",
            ["role"],
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300),
            registry=self.registry,
        )
        self.failover_seconds = Histogram(
            "tarragon_failover_seconds",
            "From the detection of a failure to a phase of its course; detected: from the fault",
            ["phase"],
            buckets=_FAILOVER_BUCKETS,
            registry=self.registry,
        )
        self.dropped_connections = Counter(
            "tarragon_control_connections_dropped",
            "Control connections refused or cut, by cause",
            ["cause"],
            registry=self.registry,
        )
        self.dropped_messages = Counter(
            "tarragon_stale_messages_dropped",
            "Messages of incarnations that are not current",
            registry=self.registry,
        )

    def expose_stats(self, read: Callable[[], Iterable[WorkerStat]]) -> None:
        """Add the workers' own statistics, read at every scrape."""
        self.registry.register(_WorkerStats(read))


class _WorkerStats:
    def __init__(self, read: Callable[[], Iterable[WorkerStat]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "tarragon_worker_stat",
            "What workers report with their heartbeats",
            labels=["worker", "name"],
        )
        for worker, name, value in self._read():
            family.add_metric([worker, name], value)
        yield family


if TYPE_CHECKING:
    _: type[Collector] = _WorkerStats
