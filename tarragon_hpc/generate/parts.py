"""Results of a batch that several heads work on, one after the other: a part for each.

    results/begun        when the first head began with it
    results/3.jsonl      what the third head of the batch has written, and nobody else ever

No lock is trusted: on a shared filesystem there may be none, and a head that was given up may go on
writing on its node for a while. So it has a file of its own, which the next head reads and never
touches. What it writes there after that is a second answer to a request that was answered again:
`merge` takes the first of each. Only a batch that is complete is merged without asking who is the
newest head: whoever does so, and however often, the file has exactly one result per request.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import fsspec

from tarragon_hpc.errors import ClusterError, UserError
from tarragon_hpc.generate.outputs import encode, protocols, read_results
from tarragon_hpc.generate.report import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator, Set

    from tarragon_hpc.generate.outputs import Found, Outcome

RESULTS = "results"
_BEGUN = "begun"
_PART = re.compile(r"([1-9][0-9]*)\.jsonl")


class Part:
    """What this head writes; a context manager. Raises ClusterError if that cannot be.

    number: from 1; how many heads have worked on the batch so far.
    """

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / RESULTS
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self.number = max(_parts(self._folder), default=0) + 1
            while not self._create():
                self.number += 1
        except OSError as error:
            raise ClusterError(f"{self._folder}: {error.strerror}") from None

    def _create(self) -> bool:
        try:
            self._file = self._path.open("xb")
        except FileExistsError:
            return False
        return True

    @property
    def _path(self) -> Path:
        return self._folder / f"{self.number}.jsonl"

    @property
    def superseded(self) -> bool:
        """Whether another head has begun to go on with the batch."""
        return max(_parts(self._folder)) > self.number

    def __repr__(self) -> str:
        return f"Part({self._path})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._file.closed:
            with contextlib.suppress(OSError):
                self.sync()
            self._file.close()

    def write(self, outcome: Outcome) -> None:
        """Append one result; it is in the operating system's hands when this returns."""
        self._file.write(encode(outcome))
        self._file.flush()

    def sync(self) -> None:
        """Have other nodes see what was written. May take a while: for a thread."""
        os.fdatasync(self._file.fileno())


def begun(run_dir: Path) -> float:
    """When the batch was begun (seconds since 1970): now, if nobody has before."""
    path = run_dir / RESULTS / _BEGUN
    now = time.time()
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with path.open("x") as file:
            file.write(repr(now))
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # a head that died between creating and writing it
        return now


def survey(run_dir: Path, target: str, known: Set[str]) -> tuple[frozenset[str], Tally]:
    """Which requests have their final result, and what these add up to.

    Raises UserError if the target, or a part, is no results file of these requests.
    """
    done: set[str] = set()
    tally = Tally()
    for found in _results(run_dir, target, known):
        outcome = found.outcome
        if outcome is not None and outcome.final and outcome.custom_id not in done:
            done.add(outcome.custom_id)
            tally.add(outcome)
    return frozenset(done), tally


def merge(run_dir: Path, target: str, known: Set[str]) -> Tally:
    """Make the target one file of one result per request, and put it in place whole.

    A request without a final result has its last failure, as `tarragon generate` leaves it. Raises
    UserError as `survey`, or if the target cannot be written.
    """
    tally = Tally()
    try:
        fs, name = fsspec.core.url_to_fs(target)
        lines = _unique(run_dir, target, known, tally)
        if "file" in protocols(fs):
            _replace(Path(name), lines)
        else:  # an object appears whole when it is closed
            whole = list(lines)  # of the target, too, which cannot be read while it is written
            with fs.open(name, "wb") as file:
                file.writelines(whole)
    except (OSError, ValueError, ImportError, NotImplementedError) as error:
        raise UserError(f"{target}: {getattr(error, 'strerror', None) or error}") from None
    return tally


def _unique(run_dir: Path, target: str, known: Set[str], tally: Tally) -> Iterator[bytes]:
    """The first final result of each request; in the end the last failures of those without."""
    done: set[str] = set()
    failures: dict[str, Found] = {}
    for found in _results(run_dir, target, known):
        outcome = found.outcome
        if outcome is None or outcome.custom_id in done:
            continue
        if not outcome.final:
            failures[outcome.custom_id] = found
            continue
        done.add(outcome.custom_id)
        failures.pop(outcome.custom_id, None)
        tally.add(outcome)
        yield found.line
    for found in failures.values():
        if found.outcome is not None:
            tally.add(found.outcome)
            yield found.line


def check_target(target: str, known: Set[str]) -> None:
    """Raises UserError if results could not be put there, before anything has been computed."""
    for _ in _of_target(target, known):
        pass
    try:
        fs, name = fsspec.core.url_to_fs(target)
        if "file" in protocols(fs):
            with open(name, "ab"):
                pass
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{target}: {getattr(error, 'strerror', None) or error}") from None


def _results(run_dir: Path, target: str, known: Set[str]) -> Iterator[Found]:
    """What is in the target, from an earlier run or merge, and in the parts, in order."""
    yield from _of_target(target, known)
    folder = run_dir / RESULTS
    for number in _parts(folder):
        path = folder / f"{number}.jsonl"
        with path.open("rb") as file:
            yield from read_results(file, str(path), known)


def _parts(folder: Path) -> list[int]:
    try:
        matches = [_PART.fullmatch(name) for name in os.listdir(folder)]
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for match in matches if match)


def _of_target(target: str, known: Set[str]) -> Iterator[Found]:
    try:
        with fsspec.open(target, "rb") as file:
            yield from read_results(file, target, known)
    except FileNotFoundError:
        return
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{target}: {getattr(error, 'strerror', None) or error}") from None


def _replace(path: Path, lines: Iterator[bytes]) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
