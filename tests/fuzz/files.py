"""Files that are read: of a run, of its requests, configuration, secrets, checkpoints, batches."""

from __future__ import annotations

import os
from pathlib import Path
from zlib import crc32

import msgspec
from safetensors.numpy import save

from tarragon_hpc.cluster.certificate import CERTIFICATE, make_certificate, run_tls
from tarragon_hpc.config import dump_config, load_config
from tarragon_hpc.config.load import parse_override
from tarragon_hpc.errors import ClusterError, ConfigError, ModelError, UserError
from tarragon_hpc.gateway.records import (
    _SUM,
    Ended,
    Forgotten,
    Item,
    Memory,
    Opened,
    Produced,
    encode,
    restated,
)
from tarragon_hpc.generate.inputs import parse_requests
from tarragon_hpc.models.safetensors_map import MappedFile
from tarragon_hpc.observe.timeline import parse_lines
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.journal import Entry, read_journal
from tarragon_hpc.wire.auth import SECRET, read_secret
from tarragon_hpc.wire.common import SamplingSpec
from tests.fuzz.target import Family

family = Family()


class _Folder:
    """A directory in memory, without a name, that has one file with some bytes."""

    def __init__(self, name, data):
        self._name, self._data = name, data

    def __enter__(self):
        # One per process: parsers want a path, and making a directory costs more than they do.
        self.path = Path(f"/dev/shm/fuzz-{os.getpid()}")
        self.path.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(self.path / self._name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(self._data)
        return self.path

    def __exit__(self, *_):
        (self.path / self._name).unlink()
        self.path.rmdir()


def _configs():
    full = dump_config(load_config({"model": {"path": "/model"}}))
    return [full.encode(), b"model: {path: x}\nexperts: {placement: {ew0: [0, 1]}}\n"]


@family.add(_configs, ConfigError)
def config(data):
    with _Folder("config.yaml", data) as folder:
        read = load_config(folder / "config.yaml")
    assert load_config(msgspec.yaml.decode(dump_config(read))) == read


@family.add(lambda: [b"experts.workers=3", b"model.path='x'", b"a.b={c: [1]}"], ConfigError)
def override(data):
    text = data.decode("utf-8", "surrogateescape")
    parse_override(text)
    load_config({"model": {"path": "x"}}, [text])


def _journals():
    events = [
        ev.WorkerStarted(1.0, "aw0", 1, 77),
        ev.TablePublished(2.0, 1, [["ew0"]]),
        ev.StopBegan(3.0, "why", False),
    ]
    lines = [msgspec.json.encode(Entry(0.5, event)) + b"\n" for event in events]
    return [b"".join(lines)]


@family.add(_journals, ClusterError)
def journal(data):
    with _Folder("journal.jsonl", data) as folder:
        for entry in read_journal(folder / "journal.jsonl"):
            msgspec.json.encode(entry)


@family.add(lambda: [b'{"time": 1.5, "event": "x", "worker": "aw0"}\n{}\n'])
def timeline(data):
    for line in parse_lines(data):
        msgspec.json.encode(line)


@family.add(lambda: [bytes(range(SECRET)).hex().encode(), b"00" * SECRET + b"\n"], ConfigError)
def secret(data):
    with _Folder("secret", data) as folder:
        assert len(read_secret(folder / "secret")) == SECRET


@family.add(lambda: [make_certificate()[0].encode()], ConfigError)
def certificate(data):
    with _Folder(CERTIFICATE, data) as folder:
        assert run_tls(folder, required=True) is not None


def _safetensors():
    import numpy as np

    tensors = {"a": np.ones((2, 3), "f4"), "b": np.zeros((0, 4), "i8"), "c": np.array(1, "f2")}
    return [save(tensors), save({"x": np.ones(5, "u1")}, {"format": "pt"})]


@family.add(_safetensors, ModelError)
def safetensors(data):
    with _Folder("x.safetensors", data) as folder:
        mapped = MappedFile(folder / "x.safetensors")
        for name in mapped.tensors:
            mapped.view(name).tobytes()


@family.add(
    lambda: [
        b'{"prompt": "hi"}\n\n{"messages": [], "custom_id": "a"}\n',
        b'\xef\xbb\xbf{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}',
    ],
    UserError,
)
def batch(data):
    assert parse_requests(data.split(b"\n"), "input")


def _requests():
    sampling = [SamplingSpec(max_tokens=8, seed=1)] * 2
    lines = [
        Opened("cmpl-a", 7, "completions", msgspec.Raw(b"{}"), "00", ["x"], [[1]], ["a", "b"],
               sampling),
        Produced([Item("a", 0, [5, 6]), Item("b", 0, [7], "length")]),
        Ended("b", None),
        Forgotten("a"),
    ]  # fmt: skip
    return [b"\n".join(map(msgspec.json.encode, lines))]


@family.add(_requests)
def request_log(data):
    """Lines without their checksums, which no damage would get past."""
    lines = [line[:-1] + _SUM % crc32(line[:-1]) for line in data.split(b"\n")]
    memory = Memory()
    memory.read(b"\n".join(lines) + b"\n")
    for kept in memory.kept.values():
        again = Memory()
        assert again.read(b"".join(map(encode, restated(kept)))) == []
        assert [log.token_ids for log in again.kept[kept.name].logs] == [
            log.token_ids for log in kept.logs
        ]
