"""A warm spare of a Slurm job: a step that has done the imports and waits for what it is to be.

    python -m tarragon_hpc.cluster.entry --standby spare0 --roles aw,ew --run-dir RUN

It says `ready JOB.STEP` on its standard output once it is that far, and reads one line from its
standard input, an `Assignment`: it is that worker from then on. If it is not an AW, and the imports
of one are not done, it starts over as what it is to be. It ends when its input does, that is with
the head that started it.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import threading
import time
from pathlib import Path

import msgspec

from tarragon_hpc.cluster import entry, node
from tarragon_hpc.cluster.preload import ENVIRONMENT, become, change, preload, preload_model, settle
from tarragon_hpc.cluster.rendezvous import CONFIG
from tarragon_hpc.cluster.spec import ENTRY
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import TarragonError
from tarragon_hpc.ids import Role
from tarragon_hpc.observe.log import configure

READY = b"ready"
_MAX_LINE = 64 << 10

log = logging.getLogger(__name__)


class Assignment(msgspec.Struct, frozen=True):
    """What a spare becomes. arguments: of `entry.main`. env: what differs (None: not set)."""

    name: str
    arguments: list[str]
    env: dict[str, str | None]


def main(argv: list[str]) -> int:
    """Import, wait, be a worker; returns its exit status, 0 if it was not needed."""
    parser = argparse.ArgumentParser(prog="tarragon_hpc.cluster.entry --standby")
    parser.add_argument("--standby", required=True, help="its own name")
    parser.add_argument("--roles", required=True, type=_roles, help="what it may become: aw,ew")
    parser.add_argument("--run-dir", required=True, type=Path)
    args = parser.parse_args(argv)
    os.umask(0o077)
    configure(args.standby)
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    ear = _Ear(before)
    threading.Thread(target=ear.listen, name="standby", daemon=True).start()
    began = time.monotonic()
    os.environ.update(ENVIRONMENT)
    preload(args.roles)
    _prepare(args.roles, args.run_dir)
    settle()
    log.info("ready after %.2f s", time.monotonic() - began)
    os.write(1, b"%s %s\n" % (READY, node.step_id().encode()))
    given = ear.wait()
    become(given.name, before | given.env)
    return entry.main(given.arguments)


class _Ear:
    """Takes the assignment, in a thread of its own. before: what the environment was."""

    def __init__(self, before: dict[str, str | None]) -> None:
        self._before = before
        self._given: queue.Queue[Assignment] = queue.Queue()
        self._lock = threading.Lock()
        self._warm = False

    def wait(self) -> Assignment:
        """What to become, now that the imports are done."""
        with self._lock:
            self._warm = True
        return self._given.get()

    def listen(self) -> None:
        """Take one line; without one nobody will ever need this process."""
        given = msgspec.json.decode(_first_line(), type=Assignment)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        with self._lock:
            if not self._warm and not given.name.startswith(Role.AW):
                change(self._before | given.env)
                os.execv(ENTRY[0], [*ENTRY, *given.arguments])
        self._given.put(given)


def _first_line() -> bytes:
    data = b""
    while b"\n" not in data and len(data) < _MAX_LINE:
        try:
            more = os.read(0, 4096)
        except OSError:
            more = b""
        if not more:
            os._exit(0)
        data += more
    return data.partition(b"\n")[0]


def _prepare(roles: frozenset[Role], run_dir: Path) -> None:
    """Also import what is special to the run's model; a worker will say what is wrong with it."""
    try:
        preload_model(roles, load_config(run_dir / CONFIG))
    except TarragonError as error:
        log.warning("%s", error)


def _roles(text: str) -> frozenset[Role]:
    return frozenset(Role(part) for part in text.split(","))
