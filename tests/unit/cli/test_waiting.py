from __future__ import annotations

import json

import pytest

from tarragon_hpc.cli import waiting
from tarragon_hpc.cli.waiting import report_of, wait_and_say
from tarragon_hpc.cluster.rendezvous import create_run
from tarragon_hpc.cluster.slurm.jobs import HEAD, Job, record
from tarragon_hpc.cluster.work import Work, write_work
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ClusterError


@pytest.fixture
def run_dir(tmp_path):
    settings = {"model": {"path": "m"}, "cluster": {"backend": "slurm"}}
    path = create_run(load_config(settings), tmp_path / "r1")
    record(path, Job("7", HEAD, 1.0))
    return path


def report(run_dir, *jobs, complete=True):
    (run_dir / "report.json").write_text(json.dumps({"jobs": list(jobs), "complete": complete}))
    (run_dir / "report.txt").write_text("requests   3\n")


def reached(monkeypatch, result):
    async def wait_for(run_dir, goal, tell, settled):
        if result is None:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(waiting, "wait_for", wait_for)


def test_a_report_is_the_newest_heads(run_dir):
    assert report_of(run_dir) is None
    report(run_dir, "7")
    assert report_of(run_dir)["complete"]
    record(run_dir, Job("8", HEAD, 2.0, 2))  # it was resumed, and has not come so far
    assert report_of(run_dir) is None
    report(run_dir, "7", "8")
    assert report_of(run_dir) is not None


@pytest.mark.parametrize(("complete", "code"), [(True, 0), (False, 1)])
def test_what_a_batch_came_to(run_dir, monkeypatch, capsys, complete, code):
    write_work(run_dir, Work("generate", "/in", "/out"))
    reached(monkeypatch, {"state": "ended"})
    with pytest.raises(ClusterError, match="^r1: ended without a report; .*head.log is empty"):
        wait_and_say(run_dir, "ended")
    report(run_dir, "7", complete=complete)
    assert wait_and_say(run_dir, "ended") == code
    assert capsys.readouterr().out == "requests   3\n"


def test_where_it_serves(run_dir, monkeypatch, capsys):
    reached(monkeypatch, {"state": "serving", "endpoint": "http://n0:1/v1"})
    assert wait_and_say(run_dir, "serving") == 0
    assert capsys.readouterr().out == "ready: http://n0:1/v1\n"


def test_an_interrupted_wait_says_that_the_run_goes_on(run_dir, monkeypatch, capsys):
    reached(monkeypatch, None)
    assert wait_and_say(run_dir, "serving") == 130
    assert "the run goes on: `tarragon status r1`" in capsys.readouterr().err
