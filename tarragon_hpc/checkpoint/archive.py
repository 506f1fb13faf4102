"""The file in the run directory by which a store leaves what it keeps to that of the next job.

One per CS, `kv/cs0.kv`, mode 0600: it holds people's prompts. It appears whole, is read by the next
process of that CS, and is gone then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING

from tarragon_hpc.checkpoint.saved import Copied, load, save
from tarragon_hpc.wire.kv import request_key
from tarragon_hpc.wire.to_head import Saved

if TYPE_CHECKING:
    from tarragon_hpc.checkpoint.saved import Store
    from tarragon_hpc.wire.context import WorkerContext
    from tarragon_hpc.wire.to_worker import Save

FOLDER = "kv"

log = logging.getLogger(__name__)


class Archive:
    """That of the worker whose context this is."""

    def __init__(self, context: WorkerContext) -> None:
        self._who = (context.worker, context.incarnation)
        self._path = context.run_dir / FOLDER / f"{context.worker}.kv"

    def __repr__(self) -> str:
        return f"Archive({self._path})"

    def write(self, store: Store, order: Save) -> Saved:
        """What the head is told of it: also that the file cannot be written. May take as long as
        the order says, or as the filesystem makes it wait.
        """
        deadline = time.monotonic() + order.seconds
        keys = frozenset(map(request_key, order.requests))
        draft = self._path.with_suffix(f".{self._who[1]}.new")
        copied, nbytes = Copied(0, 0), 0
        try:
            draft.parent.mkdir(mode=0o700, exist_ok=True)
            number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(number, "wb") as file:
                copied = save(store, file, keys, order.attempt, time.monotonic, deadline)
                file.flush()
                os.fsync(file.fileno())
                nbytes = file.tell()
            draft.replace(self._path)
        except OSError as error:
            copied, nbytes = Copied(0, 0, f"{error.filename or draft}: {error.strerror}"), 0
            with contextlib.suppress(OSError):
                draft.unlink()
        said = f" ({copied.problem})" if copied.problem else ""
        log.info("saved %d positions of %d requests%s", copied.tokens, copied.requests, said)
        return Saved(*self._who, copied.requests, copied.tokens, nbytes, copied.problem)

    def read(self, store: Store) -> bool:
        """Have a new store take what is there, if there is anything. What cannot be read is left
        out: it is computed anew. False: the store is not to be used, see `load`.
        """
        try:
            with self._path.open("rb") as file:
                copied = load(store, file, time.monotonic)
            self._path.unlink()
        except FileNotFoundError:
            return True
        except OSError as error:
            log.warning("%s: %s", self._path, error.strerror)
            return False
        log.info("took over %d positions of %d requests", copied.tokens, copied.requests)
        if copied.problem:
            log.warning("%s: %s", self._path, copied.problem)
        return copied.requests > 0
