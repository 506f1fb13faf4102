"""Logging, set up once per process by whoever owns the process (cli, entry)."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

ROOT = "tarragon_hpc"


class _Formatter(logging.Formatter):
    """`2026-01-31 12:00:00.123Z aw0.1 WARNING attention.engine: text`, the time in UTC."""

    def __init__(self, process: str) -> None:
        prefix = process.replace("%", "%%")
        super().__init__(f"%(asctime)s {prefix} %(levelname)s %(short)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        record.short = record.name.removeprefix(f"{ROOT}.")
        return super().format(record)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        whole = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record.created))
        return f"{whole}.{int(record.msecs):03d}Z"


def configure(process: str, level: int = logging.INFO) -> None:
    """Send this package's log to stderr, each line with the name of the process.

    Other packages' warnings go the same way. Calling it again replaces the earlier set-up.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(process))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT).setLevel(level)


class ChangeLogger:
    """Logs a verdict when it differs from the last one about the same subject.

    For decisions that are made again and again: their reason is news only when it changes.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._last: dict[Hashable, str] = {}

    def log_if_changed(self, subject: Hashable, text: str, level: int = logging.INFO) -> bool:
        """Log `subject: text` unless that was said last about it; True if it was logged."""
        if self._last.get(subject) == text:
            return False
        self._last[subject] = text
        self._log.log(level, "%s: %s", subject, text)
        return True

    def forget(self, subject: Hashable) -> None:
        """The subject is gone; whatever is said about it next is news."""
        self._last.pop(subject, None)
