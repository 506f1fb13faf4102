"""`tarragon logs`: the logs of a run's workers and heads, together or one of them, as they grow."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, NamedTuple

from tarragon_hpc.cluster.rendezvous import LOGS
from tarragon_hpc.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HEAD, JOB = "head", "job"

_POLL_S = 0.25
# Logs that come, whatever the run is like.
_LATER = re.compile(r"head|job|[a-z]+\d+(\.\d+)?")


class Line(NamedTuple):
    """One line of a log. source: the worker and its incarnation, e.g. aw0.1."""

    source: str
    text: str


def log_files(run_dir: Path, worker: str | None, *, awaited: bool = False) -> list[Path]:
    """The logs of one worker (all its incarnations), the head or the job, or of all.

    Raises UserError if there is none, unless it is `awaited`.
    """
    every = sorted((run_dir / LOGS).glob("*.log"))
    if worker is None:
        return every
    name = HEAD if worker == JOB else worker  # what a job prints is what its heads print
    mine = [p for p in every if p.stem == name or p.stem.rpartition(".")[0] == name]
    if not mine and not (awaited and (not every or _LATER.fullmatch(worker))):
        known = sorted({p.stem.rpartition(".")[0] or p.stem for p in every})
        raise UserError(f"WORKER: {worker!r} has no log; there are {', '.join(known) or 'none'}")
    return mine


def last_lines(files: list[Path], count: int) -> tuple[list[Line], dict[Path, int]]:
    """The last `count` lines of each file, and where each file was read to."""
    lines: list[Line] = []
    offsets: dict[Path, int] = {}
    for path in files:
        new, offsets[path] = _read(path, 0)
        lines += new[max(0, len(new) - count) :]
    return lines, offsets


def follow(
    find: Callable[[], list[Path]],
    offsets: dict[Path, int],
    running: Callable[[], bool],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Line]:
    """Lines as they are written, from new files too, until the run is over."""
    alive = True
    while alive:
        alive = running()  # asked before reading: what the last process wrote is still read
        for path in find():
            new, offsets[path] = _read(path, offsets.get(path, 0))
            yield from new
        if alive:
            sleep(_POLL_S)


def _read(path: Path, offset: int) -> tuple[list[Line], int]:
    """Whole lines from `offset` on, and where the next one starts."""
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    text = whole.decode(errors="replace")
    return [Line(path.stem, line) for line in text.split("\n")[:-1]], offset + len(whole)
