"""What heads and workers write about themselves, and how a reader tells a good record. Pure.

A record is one line for the reader and one of JSON for people:

    tarragon-record 1 head 311 <sha256 of the rest, hex>
    {"run": …}

The first line has the version of the format, the kind of the record and the length of the rest.
"""

from __future__ import annotations

import hashlib
import re
from typing import TypeVar

import msgspec

from tarragon_hpc.errors import RecordError

VERSION = 1
MAX_BYTES = 64 << 10

_LINE = re.compile(rb"tarragon-record ([0-9]{1,4}) ([a-z]{1,16}) ([0-9]{1,6}) ([0-9a-f]{64})\n")
_LONGEST_LINE = 128


class HeadRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="head"):
    """Where a run's head listens. `endpoint` is the gateway's URL, with its real port.

    runtime_dir: on the head's node; empty: its workers have one of their own there too, since they
    may outlive it. interfaces: all addresses of that node, by interface. nonce:
    of the run. incarnation: of the head, from 1. boot_id: of its node's kernel; it tells nodes
    apart, host names do not. What is empty is filled in by `rendezvous.write_head`.
    """

    run: str
    pid: int
    host: str
    control_host: str
    control_port: int
    endpoint: str
    runtime_dir: str
    interfaces: dict[str, str] = {}
    nonce: str = ""
    incarnation: int = 0
    boot_id: str = ""


class WorkerRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="worker"):
    """One incarnation of a worker, about to connect to the head.

    interfaces: addresses of its node by interface. address: of its data plane, as peers are given
    it. step: of Slurm, `job.step`, empty without.
    """

    nonce: str
    role: str
    worker: str
    incarnation: int
    host: str
    boot_id: str
    interfaces: dict[str, str]
    address: dict[str, str]
    pid: int
    step: str = ""


Record = TypeVar("Record", HeadRecord, WorkerRecord)


def encode(record: HeadRecord | WorkerRecord) -> bytes:
    """A record as a file. Raises RecordError if it is larger than readers accept."""
    body = msgspec.json.encode(record) + b"\n"
    line = b"tarragon-record %d %s %d %s\n" % (VERSION, _kind(type(record)), len(body), _sum(body))
    if len(line) + len(body) > MAX_BYTES:
        raise RecordError(f"is too large: {len(line) + len(body)} bytes, at most {MAX_BYTES}")
    return line + body


def decode(data: bytes, kind: type[Record]) -> Record:
    """A record from the first MAX_BYTES + 1 bytes of a file. Raises RecordError saying what is
    wrong: empty, half-written, damaged, too large, of another version or kind.
    """
    if len(data) > MAX_BYTES:
        raise RecordError(f"is too large: more than {MAX_BYTES} bytes")
    if not data:
        raise RecordError("is empty")
    line, newline, body = data.partition(b"\n")
    match = _LINE.fullmatch(line + newline)
    if match is None:
        whole = newline or len(line) > _LONGEST_LINE or not _begins(line)
        raise RecordError("is damaged: it does not begin like a record" if whole else _HALF)
    version, name, length, checksum = match.groups()
    if int(version) != VERSION:
        raise RecordError(f"has format {int(version)}; this version reads format {VERSION}")
    if name != _kind(kind):
        raise RecordError(f"is the record of a {name.decode()}")
    if len(body) < int(length):
        raise RecordError(_HALF)
    if len(body) > int(length) or _sum(body) != checksum:
        raise RecordError("is damaged: its checksum is wrong")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"is damaged: {error}") from None


_HALF = "is half-written"


def _begins(line: bytes) -> bool:
    """Whether this is how the first line of a record begins."""
    word = b"tarragon-record "
    return line.startswith(word) or word.startswith(line)


def _kind(kind: type[HeadRecord | WorkerRecord]) -> bytes:
    return str(kind.__struct_config__.tag).encode()


def _sum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()
