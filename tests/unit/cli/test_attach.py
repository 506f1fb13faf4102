"""`tarragon attach`: whom it refuses, before it takes anything away from anybody."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.cli.attach import attach
from tarragon_hpc.cluster.rendezvous import claim_head, create_run, list_run, newest_claim
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import UserError
from tarragon_hpc.orchestrator import events as ev
from tests.unit.cluster.test_heir import CREATED, head, journal

if TYPE_CHECKING:
    from pathlib import Path


def make_run(path: Path, backend: str = "slurm") -> Path:
    return create_run(load_config({"model": {"path": "m"}, "cluster": {"backend": backend}}), path)


def claims(run: Path) -> int:
    from tarragon_hpc.cluster.directory import Directory

    return newest_claim(list_run(Directory(run)))


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ([ev.StopBegan(1.0, "a client asked for it", False), ev.RunEnded(2.0)],
         "has ended (a client asked for it)"),
        ([ev.StopBegan(1.0, "the limit is near", False, True), ev.RunEnded(2.0)],
         "was handed over; `tarragon resume` goes on with it (the limit is near)"),
    ],
)  # fmt: skip
def test_a_run_that_is_over_is_left_as_it_is(tmp_path: Path, end, why):
    run = make_run(tmp_path / "run")
    claim_head(run)
    journal(run, CREATED, *end)
    with pytest.raises(UserError) as error:
        attach(str(run), None, force=True)
    assert str(error.value) == f"RUN: run: {why}"
    assert claims(run) == 1


def test_a_local_run_and_one_that_never_had_a_head_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="RUN: local: is local; its workers ended with its head"):
        attach(str(make_run(tmp_path / "local", "local")), None, force=True)
    run = make_run(tmp_path / "new")
    with pytest.raises(UserError, match="RUN: new: has had no head yet; its job starts it"):
        attach(str(run), None, force=False)
    assert claims(run) == 0


def test_a_head_that_lives_keeps_its_run_unless_force_is_used(tmp_path: Path):
    run = make_run(tmp_path / "run")
    ready, done = threading.Event(), threading.Event()

    async def live() -> None:
        async with head(run):
            ready.set()
            await asyncio.to_thread(done.wait, 30)

    thread = threading.Thread(target=asyncio.run, args=(live(),), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        with pytest.raises(UserError) as error:
            attach(str(run), None, force=False)
    finally:
        done.set()
        thread.join()
    assert str(error.value) == (
        "RUN: run: its head (pid 1 on h) is there; --force takes the run away from it"
    )
    assert claims(run) == 1
