"""Frames for a checkpoint store, which native code and its specification must answer alike, answers
of a store, and the file that one leaves to the next.
"""

from __future__ import annotations

import io
from types import SimpleNamespace

from tarragon_hpc import native
from tarragon_hpc.checkpoint.fetching import Fetching, _Fetch
from tarragon_hpc.checkpoint.looking import _Look
from tarragon_hpc.checkpoint.plain_requests import page_bytes
from tarragon_hpc.checkpoint.plain_store import PlainStore
from tarragon_hpc.checkpoint.row_layout import RowLayout
from tarragon_hpc.checkpoint.saved import load, save
from tarragon_hpc.errors import FrameError
from tarragon_hpc.wire import kv
from tests.fuzz.target import Family
from tests.unit.checkpoint.frames import ROW_BYTES, ask, hello, put

family = Family()
ROOM = 1024
RUN = kv.Run(1, 1, 0, 0, 2)


def _script(*frames):
    return b"".join(len(f).to_bytes(2, "little") + f for f in frames)


def _scripts():
    run = RUN
    later = run._replace(start=2, length=1)
    return [
        _script(put(2, [run]), ask(kv.LOOK, 3, run), ask(kv.FETCH, 4, run)),
        _script(put(2, [run]), put(3, [later]), ask(kv.FREE, 4, run), ask(kv.FETCH, 5, run)),
        _script(put(2, [run], 1, commit=False), put(3, [run], 2, first=1), ask(kv.LOOK, 4, run)),
        _script(put(2, [run, run._replace(key=2)]), put(3, [run._replace(attempt=2, length=9)])),
        _script(hello((8, 12), 2), hello(ROW_BYTES, 3), ask(kv.FETCH, 4, run._replace(length=0))),
    ]


def _both():
    """Small stores: the specification, and the native one if there is one."""
    memory = 6 * page_bytes(ROW_BYTES, 2)
    stores = [PlainStore(memory, 2)]
    if native.reason is None:
        stores.append(native.module.KvStore(memory, 2, True, 10.0))
    return stores


def _compare(stores):
    assert all(s.stats() == stores[0].stats() for s in stores)
    assert all(s.prefixes() == stores[0].prefixes() for s in stores)


@family.add(_scripts)
def kv_store(data):
    """Some frames of one client, each behind its length (2 bytes)."""
    stores = _both()
    frames, at = [hello(sequence=1)], 0
    while at + 2 <= len(data) and len(frames) < 40:
        size = int.from_bytes(data[at : at + 2], "little")
        frames.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    for frame in frames:
        answers = []
        for store in stores:
            reply = bytearray(b"\xee" * ROOM)
            count = store.handle(1, memoryview(frame), memoryview(reply), 0.0)
            assert count <= ROOM
            answers.append(bytes(reply))
        assert len(set(answers)) == 1, frame
        kv.unpack_header(answers[0])
    _compare(stores)


def _frames():
    return [hello(), put(2, [RUN]), ask(kv.LOOK, 3, RUN, RUN)]


@family.add(_frames, FrameError)
def kv_frame(data):
    header = kv.unpack_header(data)
    assert len(kv.unpack_runs(data, header)) == header.runs


def _answers():
    store = PlainStore(1 << 20, 2)
    made = []
    for frame in (hello(), put(2, [RUN]), ask(kv.LOOK, 3, RUN), ask(kv.FETCH, 4, RUN)):
        reply = bytearray(ROOM)
        made.append(bytes(reply[: store.handle(1, memoryview(frame), memoryview(reply), 0.0)]))
    return made[1:]


@family.add(_answers, FrameError)
def kv_answer(data):
    """What the AW's side takes of it."""
    header, reply, heard = kv.unpack_header(data), memoryview(data), []
    layout = RowLayout(ROW_BYTES)

    def sink(start, rows, payload, sums):
        heard.append((start, rows, len(payload), len(sums)))
        return True

    channel = SimpleNamespace(geometry=SimpleNamespace(reply_bytes=ROOM))
    line = SimpleNamespace(channel=channel, urgent=[], heard=0.0)
    traffic = SimpleNamespace(bad_fetches=0, restored_tokens=0)
    fetching = Fetching(line, layout, RUN, sink, lambda _: None, traffic, 0.0)
    question = line.urgent[0]
    assert isinstance(question, _Fetch)
    looking = SimpleNamespace(over=False, heard=lambda _, tokens: heard.append(tokens))
    _Look(looking, ("cs0", 1)).answered(header, reply)
    question.answered(header, reply)
    if fetching.next != RUN.start:
        assert heard[-1] == (0, 2, 2 * sum(ROW_BYTES), 4 * 2 * len(ROW_BYTES))


def _files():
    store, file = PlainStore(1 << 20, 2), io.BytesIO()
    for frame in (hello(), put(2, [RUN, RUN._replace(key=2)]), put(3, [RUN._replace(start=2)])):
        store.handle(1, memoryview(frame), memoryview(bytearray(ROOM)), 0.0)
    save(store, file, {1, 2}, 9, lambda: 0.0, 1.0, frame_bytes=256)
    return [file.getvalue()]


@family.add(_files)
def saved_kv(data):
    stores = _both()
    copied = {load(store, io.BytesIO(data), lambda: 0.0) for store in stores}
    assert len(copied) == 1
    _compare(stores)
