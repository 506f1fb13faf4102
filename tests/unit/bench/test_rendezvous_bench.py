"""`bench rendezvous`: a hundred workers, what it costs them, and what it says if one is missing."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.bench import rendezvous
from tarragon_hpc.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def few_processes(monkeypatch):
    monkeypatch.setattr(rendezvous, "PROCESSES", 2)


def test_a_hundred_workers_need_fewer_than_ten_operations_each(tmp_path: Path, capsys):
    result = json.loads(json.dumps(rendezvous.run(workers=100, directory=str(tmp_path))))
    assert result["problem"] is None
    assert result["summary"]["workers"] == 100
    assert len({worker["worker"] for worker in result["workers"]}) == 100
    late = [worker["operations"] for worker in result["workers"] if not worker["early"]]
    assert late == [{"scan": 1, "read": 3, "create": 2, "sync": 1, "rename": 1}] * 90
    assert 8 < result["summary"]["operations"] < 10
    assert result["summary"]["operations_early"] > 8
    assert result["head"] == {"scan": 1, "read": 100}
    assert "100 workers through one run directory" in capsys.readouterr().out
    assert os.listdir(tmp_path) == []


def test_a_record_that_is_missing_spoils_the_measurement(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(rendezvous, "_process", _forget_one)
    result = rendezvous.run(workers=5, early=0, directory=str(tmp_path))
    assert result["problem"].startswith("4 good records")


def _forget_one(run_dir, numbers, early):
    return _real(run_dir, numbers[:-1] if 0 in numbers else numbers, early)


_real = rendezvous._process


def test_a_directory_that_is_not_there_is_the_users_mistake(tmp_path: Path):
    with pytest.raises(UserError, match="--directory .*/nowhere: no such directory"):
        rendezvous.run(directory=str(tmp_path / "nowhere"))
