"""Records: what is written is read back, and nothing else is taken for a record."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.cluster.records import MAX_BYTES, HeadRecord, WorkerRecord, decode, encode
from tarragon_hpc.errors import RecordError

WORKER = WorkerRecord(
    nonce="0123456789ab",
    role="ew",
    worker="ew3",
    incarnation=2,
    host="node7",
    boot_id="b",
    interfaces={"ib0": "10.0.0.7"},
    address={"kind": "tcp", "host": "10.0.0.7", "port": "41000"},
    pid=7,
    step="12.3",
)
HEAD = HeadRecord("r", 12, "node1", "127.0.0.1", 4000, "http://x/v1", "/tmp/x", {"lo": "127.0.0.1"})
GOOD = encode(WORKER)

texts = st.text(max_size=40)
names = st.dictionaries(texts, texts, max_size=4)
numbers = st.integers(0, 2**31)
heads = st.builds(
    HeadRecord, texts, numbers, texts, texts, numbers, texts, texts, names, texts, numbers, texts
)
workers = st.builds(
    WorkerRecord, texts, texts, texts, numbers, texts, texts, names, names, numbers, texts
)


def sealed(body: bytes, version: int = 1, kind: str = "worker") -> bytes:
    checksum = hashlib.sha256(body).hexdigest()
    return f"tarragon-record {version} {kind} {len(body)} {checksum}\n".encode() + body


@given(heads | workers)
def test_what_is_written_is_read_back(record):
    assert decode(encode(record), type(record)) == record


def test_people_can_read_it():
    line, body = GOOD.split(b"\n", 1)
    assert line.startswith(b"tarragon-record 1 worker ")
    assert msgspec.json.decode(body) == {"type": "worker"} | msgspec.structs.asdict(WORKER)


@given(st.integers(0, len(GOOD) - 1))
def test_a_record_cut_anywhere_is_half_written(size):
    with pytest.raises(RecordError, match="is half-written" if size else "is empty"):
        decode(GOOD[:size], WorkerRecord)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_no_changed_byte_goes_unnoticed(place, change):
    data = bytearray(GOOD)
    data[place] ^= change
    with pytest.raises(RecordError):
        decode(bytes(data), WorkerRecord)


@given(st.binary(max_size=300))
def test_garbage_is_told_from_records(data):
    with pytest.raises(RecordError):
        decode(data, HeadRecord)
    with pytest.raises(RecordError, match="is damaged"):
        decode(sealed(data), WorkerRecord)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (GOOD + b" ", "is damaged: its checksum is wrong"),
        (b"x" * (MAX_BYTES + 1), "is too large: more than 65536 bytes"),
        (b"x" * 400, "is damaged: it does not begin like a record"),
        (b'{"run": "r"}', "is damaged: it does not begin like a record"),
        (b"tarragon-record " + b"1" * 200, "is damaged: it does not begin like a record"),
        (sealed(b"{}", version=2), "has format 2; this version reads format 1"),
        (encode(HEAD), "is the record of a head"),
        (sealed(b"{}"), "is damaged: "),
        (sealed(GOOD.split(b"\n", 1)[1].replace(b'"pid":7', b'"pid":"x"')), "is damaged: .*pid"),
        (sealed(GOOD.split(b"\n", 1)[1].replace(b'"pid":7', b'"pid":7,"new":1')), "is damaged: "),
    ],
)
def test_what_is_wrong_is_said(data, why):
    with pytest.raises(RecordError, match=f"^{why}"):
        decode(data, WorkerRecord)


def test_what_readers_would_refuse_is_not_written():
    huge = msgspec.structs.replace(WORKER, address={"host": "x" * MAX_BYTES})
    with pytest.raises(RecordError, match="is too large: .* at most 65536"):
        encode(huge)
