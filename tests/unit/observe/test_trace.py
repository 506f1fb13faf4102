"""Traces on their way from an AW to whoever reads them."""

from __future__ import annotations

from tarragon_hpc.ids import Incarnation
from tarragon_hpc.observe.trace import (
    TRACE,
    ExpertCall,
    Frame,
    Trace,
    read_traces,
    trace_file,
    write_trace,
)

WHO = Incarnation("aw1", 2)


def test_none_is_wanted_unless_the_environment_says_so(monkeypatch, tmp_path):
    monkeypatch.delenv(TRACE, raising=False)
    assert trace_file(WHO) is None
    monkeypatch.setenv(TRACE, str(tmp_path))
    assert trace_file(WHO) == tmp_path / "aw1.2.trace.json"


def test_what_is_written_is_read(tmp_path):
    calls = [ExpertCall(1.0, 1.1, 1.5, 100, 50)]
    traces = [Trace(f"aw{i}.1", calls, [Frame(1.2, 64, 1)] * i) for i in range(2)]
    for trace in traces:
        write_trace(tmp_path / "new" / f"{trace.worker}.trace.json", trace)
    assert read_traces(tmp_path / "new") == traces
    assert read_traces(tmp_path / "old") == []
