"""A head that was superseded leaves before it touches anything."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.cluster import tenure
from tarragon_hpc.cluster.rendezvous import claim_head
from tarragon_hpc.cluster.tenure import Guarded, Tenure
from tarragon_hpc.ids import Incarnation

if TYPE_CHECKING:
    from pathlib import Path

EW0 = Incarnation("ew0", 1)


class Left(BaseException):
    """In place of the end of the process."""


def leave():
    raise Left


class Launcher:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self, who):
        self.calls.append("start")
        return 7

    def stop(self, who, grace_s) -> None:
        self.calls.append("stop")

    def kill(self, who) -> None:
        self.calls.append("kill")


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setattr(tenure, "_FRESH_S", 0.0)


def test_nothing_is_started_or_ended_for_a_head_that_is_none_any_more(new_run: Path):
    assert claim_head(new_run) == 1
    launcher = Launcher()
    guarded = Guarded(launcher, Tenure(new_run, 1, leave))
    assert guarded.start(EW0) == 7
    guarded.stop(EW0, 1.0)
    guarded.kill(EW0)
    assert claim_head(new_run) == 2
    for act in (
        lambda: guarded.start(EW0),
        lambda: guarded.stop(EW0, 1.0),
        lambda: guarded.kill(EW0),
    ):
        with pytest.raises(Left):
            act()
    assert launcher.calls == ["start", "stop", "kill"]


def test_it_is_noticed_within_a_second_also_when_nothing_is_to_be_done(new_run: Path, monkeypatch):
    monkeypatch.setattr(tenure, "_LOOK_S", 0.02)
    claim_head(new_run)

    async def scenario() -> None:
        watch = asyncio.create_task(Tenure(new_run, 1, leave).watch())
        await asyncio.sleep(0.1)
        assert not watch.done()
        claim_head(new_run)
        with pytest.raises(Left):
            await asyncio.wait_for(watch, 5)

    asyncio.run(scenario())


def test_a_directory_that_cannot_be_read_says_nothing(new_run: Path, caplog):
    claim_head(new_run)
    shutil.rmtree(new_run)
    Tenure(new_run, 1, leave).check()
    assert "No such file or directory" in caplog.text


def test_of_many_successors_one_is_the_next(new_run: Path):
    assert claim_head(new_run, after=0) == 1
    assert claim_head(new_run, after=0) is None
    assert [claim_head(new_run, after=1) for _ in range(3)] == [2, None, None]
    assert claim_head(new_run) == 3
