"""The run directory: how workers and clients find the head, and where a run keeps its files.

    <root>/<name or model>-<utc time>-<nonce>/      mode 0700, on a filesystem of all nodes
        config.yaml      the resolved configuration
        secret           opens the control and data connections, mode 0600
        head.N.claim     taken by the N-th head of the run, and by no other process
        head.N.json      where that head listens (HeadRecord); the highest N counts
        workers/         ew0.2.claim, taken by the one process that is this incarnation;
                         ew0.2.json, what it says of itself (WorkerRecord), for diagnosis
        journal.jsonl    every event the orchestrator acted on; the N-th head's: journal.N.jsonl
        timeline.jsonl   what happened when
        work.json        what the run is there for, if it was prepared for a job
        jobs/            the Slurm jobs of the run, one file each
        requests.N.jsonl what the N-th head knows of the requests that are to survive it, mode 0600
        kv/              at a handover: what each store keeps, for the next job, mode 0600
        results/         of a batch in a job: a part for each head; report.json, report.txt
        logs/            one file per worker and incarnation

Records are immutable and appear whole, under a name that is written once (`directory.py`); names
carry the order, so clocks do not matter. Every record has the run's nonce, which follows from its
secret: what was left by, or copied from, another run is ignored. Who starts a worker must give it
an incarnation that was never used before; a second process with the same one ends (`Claimed`).
Bootstrap only: after that everything goes over the control connections, and nobody looks at these
files to see who is alive.
"""

from __future__ import annotations

import calendar
import hashlib
import logging
import os
import re
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tarragon_hpc.cluster import node
from tarragon_hpc.cluster.directory import Directory, said
from tarragon_hpc.cluster.records import MAX_BYTES, HeadRecord, decode, encode
from tarragon_hpc.cluster.root import local_path
from tarragon_hpc.config import dump_config
from tarragon_hpc.errors import ClusterError, ConfigError, RecordError, UserError
from tarragon_hpc.transport.interfaces import boot_id
from tarragon_hpc.wire.auth import new_secret, read_secret, write_secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.config import Config

CONFIG = "config.yaml"
SECRET = "secret"
WORKERS = "workers"
JOURNAL = "journal.jsonl"
TIMELINE = "timeline.jsonl"
LOGS = "logs"

_HEAD = re.compile(r"head\.([1-9][0-9]{0,8})\.(claim|json)")
_STAMP_FORMAT = "%Y%m%dT%H%M%SZ"
_STAMP = re.compile(r"-(\d{8}T\d{6}Z)-[0-9a-f]{6}$")
_RUNTIME_PREFIX = "tarragon-"

log = logging.getLogger(__name__)


def run_nonce(secret: bytes) -> str:
    """The run that a secret belongs to: 12 hex digits, which tell nothing of the secret."""
    return hashlib.sha256(b"tarragon run" + secret).hexdigest()[:12]


def run_stem(config: Config) -> str:
    """How the names of a configuration's runs begin."""
    name = config.run.name or config.model.served_name or Path(config.model.path).resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"


def create_run(config: Config, run_dir: Path | None = None, *, now: float | None = None) -> Path:
    """Make the directory of a new run, with its secret and configuration; returns its path.

    `run_dir` must be absent or empty. Raises ConfigError naming `run.root` or `--run-dir`.
    """
    secret = new_secret()
    if run_dir is None:
        key = "run.root"
        stamp = time.strftime(_STAMP_FORMAT, time.gmtime(now))
        path = local_path(config.run.root) / f"{run_stem(config)}-{stamp}-{run_nonce(secret)[:6]}"
    else:
        key = "--run-dir"
        path = run_dir.expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=run_dir is not None)
        if any(path.iterdir()):
            raise ConfigError(key, f"{path}: is not empty; every run needs a directory of its own")
        path.chmod(0o700)
        for folder in (LOGS, WORKERS):
            (path / folder).mkdir(mode=0o700)
        write_secret(path / SECRET, secret)
        Directory(path).write(CONFIG, dump_config(config).encode())
    except OSError as error:
        raise ConfigError(key, f"{path}: {error.strerror or error}") from None
    return path


def open_run(run_dir: Path) -> Path:
    """The directory of a run that was made before. Raises UserError if it is none."""
    path = run_dir.expanduser().absolute()
    if not (path / CONFIG).is_file():
        raise UserError(f"RUN: {path}: is no run directory ({CONFIG} is missing)")
    run_secret(path)
    return path


def create_runtime_dir() -> Path:
    """A private directory on this node for sockets; its path is short (they allow 107 bytes)."""
    return Path(tempfile.mkdtemp(prefix=_RUNTIME_PREFIX))


def is_runtime_dir(path: Path) -> bool:
    """Whether a path (from a file, say) is one that `create_runtime_dir` made for this user."""
    return (
        path.parent == Path(tempfile.gettempdir())
        and path.name.startswith(_RUNTIME_PREFIX)
        and path.is_dir()
        and not path.is_symlink()
        and path.stat().st_uid == os.getuid()
    )


def newest_claim(names: list[str]) -> int:
    """The newest head that any process has claimed to be, of the `names` in a run directory."""
    return max((n for n, _ in _numbered(names, "claim")), default=0)


def claim_head(run_dir: Path, after: int | None = None) -> int | None:
    """Become the next head of a run: no other process is, and those before it are superseded.
    Returns its number. `after`: only as the successor of this one, None if somebody else is that.

    Raises ClusterError.
    """
    run = Directory(run_dir)
    who = f"pid {os.getpid()} on {socket.gethostname()}\n"
    try:
        number = 1 + (newest_claim(run.names()) if after is None else after)
        while not run.claim(f"head.{number}.claim", who):
            if after is not None:
                return None
            number += 1
    except OSError as error:
        raise ClusterError(f"{run_dir}: cannot be written: {said(error)}") from None
    return number


def write_head(run_dir: Path, record: HeadRecord) -> HeadRecord:
    """Publish where the head listens, under the number that it has claimed; without one (0) as the
    next head. Returns the whole record. Raises ClusterError.
    """
    number = record.incarnation or claim_head(run_dir)
    assert number is not None
    run = Directory(run_dir)
    try:
        whole = msgspec.structs.replace(
            record,
            interfaces=record.interfaces or node.interfaces(),
            nonce=run_nonce(run_secret(run_dir)),
            incarnation=number,
            boot_id=record.boot_id or boot_id(),
        )
        run.write(f"head.{number}.json", encode(whole))
    except OSError as error:
        raise ClusterError(f"{run_dir}: cannot be written: {said(error)}") from None
    return whole


def read_head(run_dir: Path) -> HeadRecord:
    """Where the head listens. Raises ClusterError if no head has said so, or not readably."""
    run = Directory(run_dir)
    return newest_head(run, list_run(run), lambda: run_secret(run_dir))


def known_head(run_dir: Path) -> HeadRecord | None:
    """The same, or None if no head has said so, or not readably."""
    try:
        return read_head(run_dir)
    except ClusterError:
        return None


def list_run(run: Directory) -> list[str]:
    """What is in a run directory. Raises ClusterError if that cannot be seen."""
    try:
        return run.names()
    except OSError as error:
        raise ClusterError(f"{run.path}: {said(error)}") from None


def newest_head(run: Directory, names: list[str], secret: Callable[[], bytes]) -> HeadRecord:
    """The record of the newest head, of the `names` in a run directory.

    `secret` is asked for if there is a record. Raises ClusterError with what is there instead.
    """
    problem = "no head has written where it listens"
    nonce: str | None = None
    for number, name in sorted(_numbered(names, "json"), reverse=True):
        nonce = nonce or run_nonce(secret())
        try:
            record = decode(run.read(name, MAX_BYTES + 1), HeadRecord)
        except RecordError as error:
            why = str(error)
        except OSError as error:
            why = said(error)
        else:
            if record.nonce == nonce and record.incarnation == number:
                return record
            of = f"run {record.nonce}, head {record.incarnation}"
            why = f"belongs elsewhere ({of}; this is {nonce}, {number})"
        problem = f"{name} {why}"
        log.debug("%s: ignored: %s", run.path, problem)
    raise ClusterError(f"{run.path}: {problem}")


def _numbered(names: list[str], suffix: str) -> list[tuple[int, str]]:
    found = (_HEAD.fullmatch(name) for name in names)
    return [(int(m[1]), m[0]) for m in found if m is not None and m[2] == suffix]


def run_secret(run_dir: Path) -> bytes:
    """The run's secret. Raises ConfigError if others could read it."""
    return read_secret(run_dir / SECRET)


def _made(config: Path) -> tuple[float, float]:
    """When a run was made, for comparison: by its name, in seconds, then by its configuration."""
    written = config.stat().st_mtime
    match = _STAMP.search(config.parent.name)
    try:
        named = calendar.timegm(time.strptime(match[1], _STAMP_FORMAT)) if match else int(written)
    except ValueError:  # digits that are no date
        named = int(written)
    return float(named), written


def find_run(root: str | Path, text: str | None = None) -> Path:
    """The directory of a run, by its id or its directory; None: the latest under `root`.

    Raises UserError with what was looked for, and where.
    """
    base = local_path(str(root))
    if text is None:
        runs = [(*_made(path), path.parent) for path in base.glob(f"*/{CONFIG}")]
        if not runs:
            raise UserError(f"RUN: no run under {base}")
        return max(runs)[-1]
    for candidate in (base / text, Path(text).expanduser().absolute()):
        if (candidate / CONFIG).is_file():
            return candidate
    raise UserError(f"RUN: {text!r} is neither a run under {base} nor a run directory")
