"""Prometheus text of the head's registry."""

from __future__ import annotations

from prometheus_client import generate_latest

from tarragon_hpc.observe.metrics import HeadMetrics


def test_each_run_has_a_registry_of_its_own():
    metrics, other = HeadMetrics(), HeadMetrics()
    metrics.epoch.set(4)
    metrics.failover_seconds.labels("answered").observe(0.004)
    metrics.dropped_connections.labels("garbage").inc()
    stats = [("ew0", "rows", 12.0)]
    metrics.expose_stats(lambda: stats)
    text = generate_latest(metrics.registry).decode()
    assert "tarragon_ert_epoch 4.0" in text
    assert 'tarragon_control_connections_dropped_total{cause="garbage"} 1.0' in text
    assert 'tarragon_failover_seconds_bucket{le="0.005",phase="answered"} 1.0' in text
    assert 'tarragon_worker_stat{name="rows",worker="ew0"} 12.0' in text
    stats[0] = ("ew0", "rows", 13.0)
    assert 'worker="ew0"} 13.0' in generate_latest(metrics.registry).decode()
    assert "tarragon_ert_epoch 0.0" in generate_latest(other.registry).decode()
