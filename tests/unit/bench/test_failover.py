"""The failover bench without a service: what it makes of what it saw, and what it refuses."""

from __future__ import annotations

import io
import random
from dataclasses import replace

import pytest
from rich.console import Console

from tarragon_hpc.bench import failover
from tarragon_hpc.bench.aftermath import Resumption
from tarragon_hpc.bench.arrivals import Stream
from tarragon_hpc.bench.failover_report import Record, as_table, summarize
from tarragon_hpc.bench.failover_setup import (
    make_prompts,
    on_hosts,
    read_also,
    service_config,
    worker_names,
)
from tarragon_hpc.bench.injection import Injection, capacity_seconds, is_protected, is_whole
from tarragon_hpc.bench.restart import Restart
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ConfigError, UserError
from tarragon_hpc.observe.story import Story


def steady_stream(prompt, start, *, count=100, step=0.01, pause_at=None, pause=0.0, **more):
    times = [start + i * step + (pause if pause_at and i >= pause_at else 0) for i in range(count)]
    return Stream(prompt, start, [prompt] * count, times, done=True, **more)


@pytest.fixture
def record():
    """Four streams, two of them held up for 30 ms by a fault at 10.5; one had another answer."""
    disturbed = [
        steady_stream(0, 10.0, pause_at=51, pause=0.03),
        steady_stream(1, 10.0, pause_at=51, pause=0.02),
        steady_stream(2, 12.0),
        steady_stream(0, 12.0),
    ]
    disturbed[2].tokens[5] = 7
    story = {"seconds": {"detected": 0.001, "ready": 0.2, "restored": 0.25}}
    injection = Injection("kill", "ew1.1", 10.5, 10.8, 0.25, story)
    cut = Stream(0, 20.0, [0, 0], [20.0, 20.1])
    restart = Restart([cut], [steady_stream(0, 23.0)], 20.11, 22.9, [3.0])
    steady = [steady_stream(p, 0.0) for p in range(3)]
    return Record(steady, disturbed, {s.prompt: s.tokens for s in steady}, [injection], restart)


def test_summary(record):
    summary = summarize(record)["summary"]
    expected = {
        "gap_ms_p50": 30.0, "gap_ms_p99": 40.0, "gap_ms_max": 40.0, "restart_ratio": 100.0,
        "capacity_s_p50": 0.25, "failed": 0, "changed": 1, "faults": 1, "streams": 4,
        "streams_hit": 2, "steady_gap_ms_p99": 10.0, "join_gap_ms_p99": 10.0,
        "restart_gap_ms_p50": 3000.0,
    }  # fmt: skip
    assert {k: summary[k] for k in expected} == {k: pytest.approx(v) for k, v in expected.items()}


def test_failures_are_counted_and_named(record):
    record.disturbed[1].error = "ew1 is gone"
    result = summarize(record)
    assert result["summary"]["failed"] == 1
    assert result["errors"] == ["ew1 is gone"]


def test_a_table_of_much_and_of_nothing(record):
    for measured in (record, Record([], [], {}, [], None)):
        console = Console(width=120, file=io.StringIO())
        console.print(as_table(summarize(measured)))
        text = console.file.getvalue()
        assert "longest gap at a fault, ms" in text
    assert "restart / failover" in text


def test_a_picture(record, tmp_path):
    pytest.importorskip("matplotlib")
    from tarragon_hpc.bench.figure import draw

    for name, measured in (("full", record), ("empty", Record([], [], {}, [], None))):
        draw(measured, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def story(fault="kill", *, lasting=False, **at):
    return Story("ew1", 1, 0.0, fault=fault, injected=1.0, lasting=lasting, at=at)


@pytest.mark.parametrize(
    ("told", "whole", "seconds"),
    [
        (story(), False, None),
        (story(detected=1.1), False, None),
        (story(detected=1.1, restored=3.0), True, 2.0),
        (story("stop", lasting=True), False, None),
        (story("stop", lasting=True, detected=1.1, restored=5.0), True, 4.0),
        (story("stop", detected=1.1), False, None),
        (story("stop", detected=1.1, back=2.5), True, 1.5),
        (story("slow"), True, None),
    ],
)
def test_when_a_service_may_be_whole_again(told, whole, seconds):
    assert told.settled is whole
    assert capacity_seconds(told) == seconds


def test_a_replacement_that_loads_is_not_whole():
    workers = [{"state": "serving"}, {"state": "loading"}]
    assert not is_whole({"state": "serving", "workers": workers})
    assert is_whole({"state": "serving", "workers": workers[:1]})
    assert not is_whole({"state": "degraded", "workers": workers[:1]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kill": "head"}, "--kill: 'head' is not one of ew, aw, cs"),
        ({"kill": "aw", "also": "aw=0.5"}, "--also: 'aw' is not one of ew, cs"),
        ({"kill": "aw", "also": "ew=2"}, "--also ew=2: expected ROLE=SHARE with a share from 0"),
        ({"kill": "aw", "also": "ew=x"}, "--also ew=x: expected ROLE=SHARE with a share from 0"),
        ({"overrides": {"experts": {"shadows": -1}}}, "experts.shadows"),
        ({"fault": "kill,cont"}, "--fault: 'cont' is not one of kill, stop, slow"),
        ({"fault": "kill,cut"}, "--fault cut: needs --hosts"),
        ({"png": "no/such/folder.png"}, "--png no/such/folder.png: the folder does not exist"),
    ],
)
def test_what_is_refused_before_anything_starts(options, message):
    with pytest.raises((UserError, ConfigError), match=message):
        failover.run("no-model", **options)


@pytest.mark.parametrize(("role", "aws", "stores"), [("ew", 2, 0), ("aw", 3, 1), ("cs", 3, 1)])
def test_a_store_only_where_it_is_used(role, aws, stores):
    config = load_config(service_config("m", role, 16, {"experts": {"shadows": 0}}))
    assert (config.attention.workers, config.checkpoint.stores) == (aws, stores)
    assert config.experts.shadows == 0
    assert config.checkpoint.restore == ("always" if stores else "auto")
    changed = service_config("m", role, 16, {"checkpoint": {"restore": "auto"}})
    assert load_config(changed).checkpoint.restore == "auto"


class FakeHosts:
    block = "10.1.2.0/24"

    def prefix(self, host):
        return ["on", host]


def test_every_worker_has_a_host():
    config = service_config("m", "aw", 16, {"cluster": {"pin": "none"}})
    names = ["aw0", "aw1", "aw2", "ew0", "ew1", "cs0"]
    assert worker_names(config) == names
    spread = load_config(on_hosts(config, FakeHosts()))
    assert spread.cluster.prefix == {name: ["on", name] for name in names}
    assert (spread.cluster.pin, spread.attention.workers) == ("none", 3)
    assert (spread.transport.kind, spread.transport.interface) == ("tcp", "10.1.2.0/24")


def test_prompts_are_the_same_whether_sampled_or_not():
    greedy = make_prompts(random.Random(1), 6, 100, 32)
    sampled = make_prompts(random.Random(1), 6, 100, 32, 0.8)
    assert [p[:2] for p in greedy] == [p[:2] for p in sampled]
    assert {p.seed for p in greedy} == {None}
    assert [p.seed for p in sampled] == list(range(6))


def test_who_else_is_killed():
    assert read_also(None, "aw") is None
    assert read_also("ew", "aw") == ("ew", 1.0)
    assert read_also("ew=0.25", "aw") == ("ew", 0.25)


def test_of_an_aw_only_the_streams_that_it_ran_count(record):
    record.disturbed[0].id, record.disturbed[1].id = "hit", "other"
    told = Resumption(10.54, "hit", "aw0.1", "aw1.1", 50, 0, 1, 9000, 0.01, 0.04, "")
    result = summarize(replace(record, role="aw", resumed=[told]))
    summary = result["summary"]
    assert (summary["gap_ms_p50"], summary["gap_ms_max"], summary["streams_hit"]) == (40.0, 40.0, 1)
    assert summary["failover_excess_ms_max"] == pytest.approx(20.0)
    assert summary["restart_ratio"] == pytest.approx(75.0)
    assert result["resumed"][0]["computed"] == 1
    console = Console(width=120, file=io.StringIO())
    console.print(as_table(result))
    assert "restored / computed anew" in console.file.getvalue()


def test_protected_is_what_a_store_has():
    kept = {"stores": 1, "protected": 3, "requests": 3}
    assert is_protected({"checkpoint": kept})
    assert not is_protected({"checkpoint": kept | {"protected": 2}})
    assert not is_protected({"checkpoint": kept | {"stores": 0}})


def test_a_picture_needs_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setattr(failover, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="needs matplotlib, which is not installed"):
        failover.run("no-model", png=str(tmp_path / "x.png"))
