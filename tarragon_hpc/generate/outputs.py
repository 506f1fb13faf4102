"""The file of results, in the OpenAI batch output format, written as they come.

    {"id":"batch_req_…","custom_id":"a","response":{"status_code":200,"request_id":…,"body":{…}},
     "error":null}

A run that was cut short leaves a file that the next one continues: results stay, a line that was
not written to its end goes, and so do requests that failed through no fault of theirs (HTTP 5xx or
no answer), which are tried again. In the end there is exactly one result per custom_id.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import fsspec
import msgspec

from tarragon_hpc.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Set

_START = b'{"id":"batch_req_'


class _Response(msgspec.Struct):
    status_code: int
    request_id: str | None
    body: Any


class _Failure(msgspec.Struct):
    code: str
    message: str


class _Result(msgspec.Struct):
    id: str
    custom_id: str
    response: _Response | None
    error: _Failure | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended: an HTTP answer, or (status None) the reason why there is none."""

    custom_id: str
    status: int | None
    body: Any = None
    request_id: str | None = None
    problem: str | None = None

    @property
    def final(self) -> bool:
        """Whether trying again would be pointless: it worked, or the request is at fault."""
        return self.status is not None and self.status < 500


@dataclass(frozen=True, slots=True)
class Found:
    """A line of a results file, as it is; its number is from 0. outcome: None if it was not written
    to its end.
    """

    number: int
    line: bytes
    outcome: Outcome | None


@dataclass(slots=True)
class Review:
    """What a results file holds. `drop`: lines (from 0) that must go; `torn`: the last one too."""

    done: set[str] = field(default_factory=set)
    drop: set[int] = field(default_factory=set)


def encode(outcome: Outcome) -> bytes:
    """One line of the file."""
    response = error = None
    if outcome.status is not None:
        response = _Response(outcome.status, outcome.request_id, outcome.body)
    else:
        error = _Failure("no_response", outcome.problem or "")
    result = _Result(f"batch_req_{secrets.token_hex(8)}", outcome.custom_id, response, error)
    return msgspec.json.encode(result) + b"\n"


def read_results(lines: Iterable[bytes], name: str, known: Set[str]) -> Iterator[Found]:
    """The results in the lines of a file. Raises UserError if they are something else.

    known: the custom_ids of the input; a result of any other means that the files do not match.
    """
    for number, line in enumerate(lines):
        strange = f"{name}: line {number + 1}: is not a result; name another file"
        if not line.endswith(b"\n"):  # only the last line can be so: the writer was cut short
            if not (line.startswith(_START) or _START.startswith(line)):
                raise UserError(strange)
            yield Found(number, line, None)
            return
        try:
            result = msgspec.json.decode(line, type=_Result)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise UserError(strange) from None
        if result.custom_id not in known:
            raise UserError(
                f"{name}: line {number + 1}: custom_id {result.custom_id!r} is not in the input;"
                " these are results of other requests, name another file"
            )
        yield Found(number, line, _outcome(result))


def _outcome(result: _Result) -> Outcome:
    answer, error = result.response, result.error
    if answer is None:
        return Outcome(result.custom_id, None, problem=error.message if error else "")
    return Outcome(result.custom_id, answer.status_code, answer.body, answer.request_id)


def review(lines: Iterable[bytes], name: str, known: Set[str]) -> Review:
    """Sort the lines of an earlier run's results; raises what `read_results` does."""
    found = Review()
    for line in read_results(lines, name, known):
        outcome = line.outcome
        if outcome is not None and outcome.final and outcome.custom_id not in found.done:
            found.done.add(outcome.custom_id)
        else:
            found.drop.add(line.number)
    return found


class ResultFile:
    """The open results file; a context manager. One writer at a time (checked on local disks).

    done: custom_ids that have their result already. Raises UserError on opening if the file is
    not a results file of these requests, cannot be written, or is being written.
    """

    def __init__(self, path: str, known: Set[str]) -> None:
        self.path = path
        try:
            self._fs, self._name = fsspec.core.url_to_fs(path)
            self._file = self._open()
            try:
                self.done = self._resume(known)
            except BaseException:
                self._file.close()
                raise
        except (OSError, ValueError, ImportError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{path}: {reason}") from None

    def __repr__(self) -> str:
        return f"ResultFile({self.path}, done={len(self.done)})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, outcome: Outcome) -> None:
        """Append one result; it is in the operating system's hands when this returns."""
        self._file.write(encode(outcome))
        self._file.flush()

    def _open(self) -> Any:
        file = self._fs.open(self._name, "ab")
        if "file" in protocols(self._fs):
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                current = os.path.samestat(os.fstat(file.fileno()), os.stat(self._name))
            except BlockingIOError:
                current = False
            except OSError:  # a filesystem without locks
                current = True
            if not current:
                file.close()
                raise UserError(f"{self.path}: is being written by another `tarragon generate`")
        return file

    def _resume(self, known: Set[str]) -> frozenset[str]:
        with self._fs.open(self._name, "rb") as old:
            found = review(old, self.path, known)
        if found.drop:
            self._rewrite(found.drop)
        return frozenset(found.done)

    def _rewrite(self, drop: Set[int]) -> None:
        """Take lines out; the old file is replaced whole, and locked until the new one is."""
        temporary = f"{self._name}.{secrets.token_hex(4)}.tmp"
        try:
            with self._fs.open(self._name, "rb") as old, self._fs.open(temporary, "wb") as new:
                new.writelines(line for number, line in enumerate(old) if number not in drop)
            self._fs.mv(temporary, self._name)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm(temporary)
            raise
        locked, self._file = self._file, self._open()
        locked.close()


def protocols(fs: Any) -> tuple[str, ...]:
    """What the protocol of a file system is called."""
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
