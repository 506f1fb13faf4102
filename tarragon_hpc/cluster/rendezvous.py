"""The run directory: how workers and clients find the head, and where a run keeps its files.

    <root>/<name or model>-<utc time>-<nonce>/      mode 0700
        config.yaml      the resolved configuration
        secret           opens the control and data connections, mode 0600
        head.json        where the head listens (HeadRecord)
        journal.jsonl    every event the orchestrator acted on
        timeline.jsonl   what happened when
        logs/            one file per worker and incarnation

Every file appears whole: written under a temporary name beside its place, then `os.replace`d.
Bootstrap only; after that everything goes over the control connections.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tarragon_hpc.config import dump_config
from tarragon_hpc.errors import ClusterError, ConfigError, UserError
from tarragon_hpc.wire.auth import new_secret, read_secret, write_secret

if TYPE_CHECKING:
    from tarragon_hpc.config import Config

CONFIG = "config.yaml"
SECRET = "secret"
HEAD = "head.json"
JOURNAL = "journal.jsonl"
TIMELINE = "timeline.jsonl"
LOGS = "logs"

_RUNTIME_PREFIX = "tarragon-"


class HeadRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a run's head listens. `endpoint` is the gateway's URL, with its real port."""

    run: str
    pid: int
    host: str
    control_host: str
    control_port: int
    endpoint: str
    runtime_dir: str


def write_atomically(path: Path, text: str) -> None:
    """Put a file in place whole or not at all, mode 0600, also on a shared filesystem."""
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def create_run(config: Config, run_dir: Path | None = None, *, now: float | None = None) -> Path:
    """Make the directory of a new run, with its secret and configuration; returns its path.

    `run_dir` must be absent or empty. Raises ConfigError naming `run.root` or `--run-dir`.
    """
    if run_dir is None:
        key = "run.root"
        name = config.run.name or config.model.served_name or Path(config.model.path).resolve().name
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        path = _root(config.run.root) / f"{stem}-{stamp}-{secrets.token_hex(3)}"
    else:
        key = "--run-dir"
        path = run_dir.expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=run_dir is not None)
        if any(path.iterdir()):
            raise ConfigError(key, f"{path}: is not empty; every run needs a directory of its own")
        path.chmod(0o700)
        (path / LOGS).mkdir(mode=0o700)
        write_secret(path / SECRET, new_secret())
        write_atomically(path / CONFIG, dump_config(config))
    except OSError as error:
        raise ConfigError(key, f"{path}: {error.strerror or error}") from None
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


def write_head(run_dir: Path, record: HeadRecord) -> None:
    """Publish where the head listens."""
    write_atomically(run_dir / HEAD, msgspec.json.encode(record).decode() + "\n")


def read_head(run_dir: Path) -> HeadRecord:
    """Where the head listens. Raises ClusterError if it has not said so or the file is damaged."""
    path = run_dir / HEAD
    try:
        return msgspec.json.decode(path.read_bytes(), type=HeadRecord)
    except OSError as error:
        raise ClusterError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ClusterError(f"{path}: is damaged") from None


def run_secret(run_dir: Path) -> bytes:
    """The run's secret. Raises ConfigError if others could read it."""
    return read_secret(run_dir / SECRET)


def find_run(root: str | Path, text: str | None = None) -> Path:
    """The directory of a run, by its id or its directory; None: the latest under `root`.

    Raises UserError with what was looked for, and where.
    """
    base = _root(root)
    if text is None:
        runs = [(path.stat().st_mtime, path.parent) for path in base.glob(f"*/{CONFIG}")]
        if not runs:
            raise UserError(f"RUN: no run under {base}")
        return max(runs)[1]
    for candidate in (base / text, Path(text).expanduser().absolute()):
        if (candidate / CONFIG).is_file():
            return candidate
    raise UserError(f"RUN: {text!r} is neither a run under {base} nor a run directory")


def _root(text: str | Path) -> Path:
    return Path(text).expanduser().absolute()
