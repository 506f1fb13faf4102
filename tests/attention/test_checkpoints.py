"""One engine's KV is kept by a store, and another sequence, or engine, goes on from it."""

from __future__ import annotations

import itertools
import random
import threading
import time

import numpy as np
import pytest

from tarragon_hpc import native

pytestmark = pytest.mark.native


class Store:
    """A checkpoint store in a thread of this process, over shared memory."""

    def __init__(self, root) -> None:
        from tarragon_hpc.checkpoint.server import StoreServer
        from tarragon_hpc.transport.bell import ProcessDoorbell
        from tarragon_hpc.transport.shm import ShmListener

        self.store = native.module.KvStore(64 << 20)
        bell = ProcessDoorbell(0)
        self.listener = ShmListener(str(root / "rt"), "cs0", 1, b"s" * 32, bell)
        self.server = StoreServer(self.store, self.listener, bell)
        self.thread = threading.Thread(target=self.server.serve, daemon=True)
        self.thread.start()
        self.numbers = iter(range(100))

    def connect(self, config):
        from tarragon_hpc.checkpoint.courier import Courier
        from tarragon_hpc.transport.bell import ProcessDoorbell
        from tarragon_hpc.transport.shm import ShmConnector

        def make(row_bytes, allocate):
            bell = ProcessDoorbell(0)
            connector = ShmConnector(f"aw{next(self.numbers)}", 1, b"s" * 32, bell)
            courier = Courier(connector, bell, row_bytes, config, allocate=allocate)
            courier.start()
            return courier

        return make

    def peers(self):
        from tarragon_hpc.wire.common import Peer

        return [Peer("cs0", 1, self.listener.address())]

    def committed(self, request: str) -> int:
        from tarragon_hpc.wire.kv import request_key

        return self.store.prefixes().get(request_key(request), 0)

    def until(self, condition):
        end = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.002)


@pytest.fixture
def store(tmp_path):
    """vLLM keeps its connector in a variable of the process: one engine with stores at a time."""
    from vllm.distributed.kv_transfer.kv_transfer_state import ensure_kv_transfer_shutdown

    store = Store(tmp_path)
    yield store
    ensure_kv_transfer_shutdown()
    store.server.stop("test over")
    store.thread.join()


def engine(path, store, **checkpoint):
    from tests.attention.conftest import Ours

    built = Ours(
        path, checkpoint={"stores": 1, "restore": "always", **checkpoint}, connect=store.connect
    )
    built.engine.set_stores(store.peers())
    store.until(lambda: built.engine._checkpoints._courier.stores)
    return built


def case(number: int, length: int, **params):
    from tests.attention.conftest import Case

    rng = random.Random(number)
    return Case([rng.randrange(60, 1024) for _ in range(length)], params)


def look(built, request, attempt=2):
    found = []
    assert built.engine.look(request, attempt, found.append)
    end = time.monotonic() + 5
    while not found:
        assert time.monotonic() < end
        time.sleep(0.001)
    return found[0]


CASES = [
    case(1, 30, max_tokens=40),
    case(2, 150, max_tokens=40),  # a prompt in chunks, several blocks
    case(3, 3, max_tokens=40, temperature=0.8, seed=5),
    case(4, 64, max_tokens=40, frequency_penalty=0.7),
]


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe", "deepseek-v3", "gpt-oss"])
def test_exactly_one_token_is_computed_again(family, tiny_models, store):
    built = engine(tiny_models(family), store)
    whole = built.generate(CASES)
    store.until(lambda: not store.store.prefixes())  # they have ended
    for i, c in enumerate(CASES):
        built.add(c, str(i))
    emitted = {str(i): [] for i in range(len(CASES))}
    while min(map(len, emitted.values())) < 17:
        for delta in built.engine.step().tokens:
            emitted[delta.request] += delta.token_ids
    for request, tokens in emitted.items():  # the last token's row is not computed yet
        total = len(CASES[int(request)].prompt) + len(tokens) - 1
        store.until(lambda r=request, t=total: store.committed(r) == t)
    built.engine.abort(list(emitted), moved=True)
    assert built.engine._llm.reset_prefix_cache()
    for request, tokens in emitted.items():
        found = look(built, request)
        built.resume(CASES[int(request)], tokens, request, found=found)
    background = case(9, 20, max_tokens=60)
    built.add(background, "background")
    outputs, resumed = built.finish_resumed()
    for i, expected in enumerate(whole):
        known = emitted[str(i)]
        assert known + outputs[str(i)].token_ids == expected.token_ids
    by_request = {r.request: r for r in resumed}
    for request, tokens in emitted.items():
        r = by_request[request]
        total = len(CASES[int(request)].prompt) + len(tokens)
        assert (r.restored, r.cached, r.computed, r.reason) == (total - 1, 0, 1, "")
        assert r.nbytes > 0
    store.until(lambda: not store.store.prefixes())


def test_what_the_store_does_not_know_is_computed_anew(tiny_models, store):
    built = engine(tiny_models("mixtral"), store)
    (whole,) = built.generate(CASES[:1])
    found = look(built, "never seen")
    assert not found.holders
    assert "unknown" in found.reason
    built.resume(CASES[0], whole.token_ids[:9], "never seen", found=found)
    outputs, (resumed,) = built.finish_resumed()
    assert outputs["never seen"].token_ids == whole.token_ids[9:]
    assert (resumed.restored, resumed.computed) == (0, 39 - resumed.cached)
    assert "unknown" in resumed.reason


def test_rows_that_went_bad_in_the_store_are_computed_anew(tiny_models, store):
    built = engine(tiny_models("qwen3-moe"), store)
    (whole,) = built.generate(CASES[:1])
    built.add(CASES[0], "poisoned")
    tokens = []
    while len(tokens) < 12:
        for delta in built.engine.step().tokens:
            tokens += delta.token_ids
    store.until(lambda: store.committed("poisoned") == 41)
    built.engine.abort(["poisoned"], moved=True)
    assert built.engine._llm.reset_prefix_cache()
    found = look(built, "poisoned")
    courier = built.engine._checkpoints._courier
    fetch = courier.fetch

    def poisoned(key, attempt, holder, start, stop, sink, done):
        def flip(first, count, payload, sums):
            rows = np.array(np.frombuffer(payload, np.uint8))
            rows[len(rows) // 2] ^= 4
            return sink(first, count, memoryview(rows), sums)

        fetch(key, attempt, holder, start, stop, flip, done)

    courier.fetch = poisoned
    built.resume(CASES[0], tokens, "poisoned", found=found)
    outputs, (resumed,) = built.finish_resumed()
    assert tokens + outputs["poisoned"].token_ids == whole.token_ids
    assert (resumed.restored, resumed.computed) == (0, 42)
    assert resumed.reason == "rows refused"
    assert built.engine.stats()["kv_bad_rows"] == 1
    store.until(lambda: not store.store.prefixes())


def test_a_lost_step_is_not_committed(tiny_models, store):
    built = engine(tiny_models("mixtral"), store)
    built.add(CASES[0], "0")
    tokens = []
    while len(tokens) < 5:
        for delta in built.engine.step().tokens:
            tokens += delta.token_ids
    built.experts.fail = "combine"
    assert built.engine.step().failed == ["0"]
    built.experts.fail = None
    store.until(lambda: store.committed("0") == 34)
    found = look(built, "0")
    (whole,) = built.generate(CASES[:1])
    built.resume(CASES[0], tokens, "0", found=found)
    outputs, _ = built.finish_resumed()
    assert tokens + outputs["0"].token_ids == whole.token_ids


def test_without_room_nothing_waits_and_all_is_sent_later(tiny_models, store):
    built = engine(tiny_models("mixtral"), store, queue=1 << 17)
    long = case(11, 400, max_tokens=100)
    built.add(long, "0")
    tokens = []
    while len(tokens) < 90:
        for delta in built.engine.step().tokens:
            tokens += delta.token_ids
    store.until(lambda: store.committed("0") == 400 + 89)


def test_pausing_copies_all_and_changes_no_token(tiny_models, store):
    """What checkpointing is compared with must do what it says."""
    built = engine(tiny_models("mixtral"), store, pause_every=8)
    c = case(12, 100, max_tokens=40)
    (whole,) = built.generate([c])
    built.add(c, "0")
    tokens, kept = [], []
    while len(tokens) < 30:
        for delta in built.engine.step().tokens:
            tokens += delta.token_ids
        kept.append(store.committed("0"))
    assert tokens == whole.token_ids[:30]
    grown = sorted(set(kept) - {0})
    assert all(later - earlier == 8 for earlier, later in itertools.pairwise(grown))
    assert grown[-1] >= 120
