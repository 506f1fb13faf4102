"""What an AW writes down of its traffic."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tarragon_hpc.attention.tracer import TracedForwarder, Tracer
from tarragon_hpc.datapath.stats import RefeStats
from tarragon_hpc.errors import PeerLost
from tarragon_hpc.ids import Incarnation
from tarragon_hpc.observe.trace import TRACE, Frame, read_traces

WHO = Incarnation("aw0", 1)


class Counting:
    """A forwarder that counts bytes as the REFE does."""

    def __init__(self):
        self.stats = RefeStats()
        self.lost = False

    def dispatch(self, layer, rows, hidden, topk_ids):
        self.stats.request_bytes += 10 * rows
        return layer, rows

    def combine(self, ticket, weights, out):
        if self.lost:
            raise PeerLost("ew0", "is gone")
        self.stats.reply_bytes += ticket[1]

    def take_masked(self):
        return None


def test_calls_are_noted_with_their_bytes_and_times():
    inner = Counting()
    traced = TracedForwarder(inner, inner.stats)
    for rows in (1, 3):
        traced.combine(traced.dispatch(0, rows, 0, 0), 0, 0)
    assert [(c.request_bytes, c.reply_bytes) for c in traced.calls] == [(10, 1), (30, 3)]
    times = [t for c in traced.calls for t in (c.began, c.posted, c.ended)]
    assert times == sorted(times)
    assert traced.take_masked() is None


def test_a_call_that_fails_is_noted_and_fails():
    inner = Counting()
    inner.lost = True
    traced = TracedForwarder(inner, inner.stats)
    with pytest.raises(PeerLost):
        traced.combine(traced.dispatch(0, 1, 0, 0), 0, 0)
    assert [c.reply_bytes for c in traced.calls] == [0]


def courier():
    wanted = []
    traffic = SimpleNamespace(record=wanted.append, recorded=lambda: [(1.0, 64, 1)])
    return SimpleNamespace(traffic=traffic), wanted


def test_nothing_is_traced_that_nobody_wants(monkeypatch):
    monkeypatch.delenv(TRACE, raising=False)
    tracer, refe = Tracer(WHO), Counting()
    some, wanted = courier()
    assert tracer.experts(refe) is refe
    tracer.stores(some)
    tracer.write()
    assert wanted == []


@pytest.mark.parametrize("stores", [True, False])
def test_a_trace_is_written_at_the_end(monkeypatch, tmp_path, stores):
    monkeypatch.setenv(TRACE, str(tmp_path))
    tracer, refe = Tracer(WHO), Counting()
    forwarder = tracer.experts(refe)
    if stores:
        some, wanted = courier()
        tracer.stores(some)
        assert wanted[0] > 0
    forwarder.combine(forwarder.dispatch(0, 2, 0, 0), 0, 0)
    tracer.write()
    (trace,) = read_traces(tmp_path)
    assert trace.worker == "aw0.1"
    assert [c.request_bytes for c in trace.calls] == [20]
    assert trace.frames == ([Frame(1.0, 64, 1)] if stores else [])
