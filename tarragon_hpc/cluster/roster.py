"""Who has appeared in the run directory, for the question why others have not.

A `Roster` is pure; `look` and `explain` read files.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.directory import Directory, said
from tarragon_hpc.cluster.records import MAX_BYTES, WorkerRecord, decode
from tarragon_hpc.cluster.rendezvous import WORKERS
from tarragon_hpc.errors import ClusterError, RecordError
from tarragon_hpc.ids import Incarnation

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tarragon_hpc.cluster.records import HeadRecord

_NAME = re.compile(r"((?:aw|ew|cs)[0-9]{1,6})\.([1-9][0-9]{0,8})\.(claim|json)")
_NAMED = 8  # workers in a message; of more only the number is told

log = logging.getLogger(__name__)


class Roster:
    """What the files of workers/ say, each shown once.

    claims: who has begun, with what its claim says. records: the newest good record of every
    worker. ignored: how many files were of no use, by reason.
    """

    def __init__(self, nonce: str) -> None:
        self.nonce = nonce
        self.claims: dict[Incarnation, str] = {}
        self.records: dict[str, WorkerRecord] = {}
        self.ignored: Counter[str] = Counter()

    def __repr__(self) -> str:
        ignored = self.ignored.total()
        return f"Roster({len(self.claims)} began, {len(self.records)} records, {ignored} ignored)"

    def see(self, name: str, data: bytes) -> str | None:
        """Take a file into account; why not, if it is of no use."""
        who = incarnation_of(name)
        if who is None:
            return self._ignore("not a file of a worker", name)
        if name.endswith(".claim"):
            self.claims[who] = data.decode(errors="replace")
            return None
        try:
            record = decode(data, WorkerRecord)
        except RecordError as error:
            return self._ignore("damaged", f"{name} {error}")
        if record.nonce != self.nonce:
            return self._ignore("another run", f"{name} is of run {record.nonce}")
        if (record.worker, record.incarnation) != who:
            return self._ignore("misplaced", f"{name} is of {record.worker}.{record.incarnation}")
        newest = self.records.get(who.worker)
        if newest is not None and newest.incarnation > who.number:
            return self._ignore("older incarnation", f"{name}: there is {newest.incarnation}")
        if newest is not None:
            self.ignored["older incarnation"] += 1
        self.records[who.worker] = record
        return None

    def explain(self, absent: Iterable[Incarnation], head: HeadRecord) -> str:
        """Why these have not come to the head, as far as files can tell."""
        unseen, begun, there = [], [], []
        for who in absent:
            record = self.records.get(who.worker)
            if record is not None and record.incarnation == who.number:
                places = " ".join(record.interfaces.values())
                there.append(f"{who} (pid {record.pid} on {record.host}, {places})")
            elif who in self.claims:
                begun.append(f"{who} ({self.claims[who]})")
            else:
                unseen.append(str(who))
        parts = []
        if unseen:
            parts.append(f"nothing was written by {_listed(unseen)}: no process, or it does not "
                         "see the run directory")  # fmt: skip
        if begun:
            parts.append(f"began but were not ready to connect: {_listed(begun)}")
        if there:
            address = f"{head.control_host}:{head.control_port}"
            parts.append(f"ready but never reached {address} (a firewall?): {_listed(there)}")
        return "; ".join(parts)

    def _ignore(self, reason: str, detail: str) -> str:
        self.ignored[reason] += 1
        return detail


def incarnation_of(name: str) -> Incarnation | None:
    """Whose file this is, by its name; None: nobody's."""
    match = _NAME.fullmatch(name)
    return None if match is None else Incarnation(match[1], int(match[2]))


def look(workers: Directory, roster: Roster, names: Sequence[str]) -> None:
    """Read files of the directory of workers into a roster."""
    for name in names:
        try:
            why = roster.see(name, workers.read(name, MAX_BYTES + 1))
        except OSError as error:
            why = f"{name}: {said(error)}"
        if why is not None:
            log.debug("%s: ignored: %s", workers.path, why)


def claims(run_dir: Path) -> dict[str, int]:
    """The newest incarnation of every worker that any process has claimed to be.

    Raises ClusterError.
    """
    workers = Directory(run_dir).under(WORKERS)
    newest: dict[str, int] = {}
    try:
        names = workers.names()
    except OSError as error:
        raise ClusterError(f"{workers.path}: {said(error)}") from None
    for name in names:
        who = incarnation_of(name)
        if who is not None:
            newest[who.worker] = max(who.number, newest.get(who.worker, 0))
    return newest


def explain(run_dir: Path, head: HeadRecord, absent: Sequence[Incarnation]) -> str:
    """Look into the run directory, at the files of these workers only, and say what became of
    them.
    """
    workers = Directory(run_dir).under(WORKERS)
    roster = Roster(head.nonce)
    try:
        names = workers.names()
    except OSError as error:
        return f"{workers.path}: {said(error)}"
    look(workers, roster, [name for name in names if incarnation_of(name) in set(absent)])
    return roster.explain(absent, head)


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more
