"""A REFE and EWs over faulty channels of every transport: right sums or the documented errors.

What is corrupted here is headers. Flipped bits in rows, or in a request's tables where they stay in
range, are beyond what either end can see: links and memory have checksums of their own for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tarragon_hpc.bench.echo_peer import EchoBank, echo_spec
from tarragon_hpc.config.schema import BatchingConfig
from tarragon_hpc.datapath.ert import ERT
from tarragon_hpc.datapath.refe import Refe
from tarragon_hpc.errors import DispatchRefused, ExpertUnavailable
from tarragon_hpc.expert.server import ExpertServer
from tarragon_hpc.transport.fault_plan import Corrupt, FaultPlan, Rule
from tarragon_hpc.wire import dispatch as wire
from tarragon_hpc.wire.common import Peer

EXPERTS, TOP_K, HIDDEN, ROWS = 4, 2, 8, 6
MISSING_S, REPLY_S = 0.4, 0.3
pytestmark = pytest.mark.native
numbers = itertools.count(1)


class TellingBank(EchoBank):
    """Echoes rows with the expert and the layer added, so that a mistake shows."""

    def run(self, layer, segments):
        super().run(layer, segments)
        for s in segments:
            floats = (ctypes.c_float * (s.count * HIDDEN)).from_address(s.y)
            np.frombuffer(floats, np.float32)[:] += told(layer, s.expert)


def told(layer, expert):
    return np.float32(16 * layer + expert)


class Service:
    """Two EWs that both hold all experts, in threads, and the REFE of an AW."""

    def __init__(self, world, candidates):
        incarnation = next(numbers)
        spec = echo_spec(EXPERTS, TOP_K, HIDDEN, dtype="float32", layers=2)
        self._servers, self._threads, peers = [], [], {}
        for name in ("ew0", "ew1"):
            bell = world.bell()
            listener = world.listener(bell, name, incarnation)
            address = world.reach(name, listener.address())
            bank = TellingBank(EXPERTS, HIDDEN * 4)
            batching = BatchingConfig(max_window_us=0)
            server = ExpertServer(bank, listener, bell, spec, incarnation, batching)
            self._servers.append(server)
            self._threads.append(threading.Thread(target=server.serve))
            self._threads[-1].start()
            peers[name] = Peer(name, incarnation, address)
        bell = world.bell()
        self.refe = Refe(
            worker="aw0",
            incarnation=incarnation,
            connector=world.connector(bell, "aw0", incarnation),
            bell=bell,
            experts=EXPERTS,
            top_k=TOP_K,
            hidden=HIDDEN,
            dtype="float32",
            slots=2,
            slot_rows=4,
            reply_timeout_s=REPLY_S,
            missing_timeout_s=MISSING_S,
        )
        self._candidates, self._peers = candidates, peers
        assert self.publish() == {}

    def publish(self):
        """A new table, as the head makes one after a failure: what is down is dialed again."""
        return self.refe.apply_table(ERT.of(self.refe.epoch + 1, self._candidates), self._peers)

    def call(self, layer, rng):
        """Whether a call ended well; AssertionError if it says so and is wrong."""
        x = rng.standard_normal((ROWS, HIDDEN)).astype(np.float32)
        ids = np.argsort(rng.random((ROWS, EXPERTS)), axis=1)[:, :TOP_K].astype(np.int32)
        weights = np.ones((ROWS, TOP_K), np.float32)
        out = np.zeros_like(x)
        begin = time.monotonic()
        try:
            self.refe.expert_io(layer, x, ids, weights, out)
        except (DispatchRefused, ExpertUnavailable):
            self.publish()
            return False
        finally:
            assert time.monotonic() - begin < 10 * (REPLY_S + MISSING_S)
        np.testing.assert_allclose(out, sum(x + told(layer, ids[:, k, None]) for k in (0, 1)))
        return True

    def recover(self, rng):
        """Calls end well again."""
        end = time.monotonic() + 20
        while not all(self.call(layer, rng) for layer in (0, 1)):
            assert time.monotonic() < end, "it does not recover"

    def close(self):
        self.refe.close()
        for server in self._servers:
            server.stop("the test is over", drain=False)
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize(
    ("peer", "direction", "struck"), [("aw0", "request", 2), ("ew0", "reply", 1)]
)
def test_rows_of_another_layer_are_not_taken(faulty, peer, direction, struck):
    """An EW that understands another layer computes something, and says of what."""
    rule = Rule(peer, direction, 1, Corrupt(8 * 24))
    with contextlib.closing(Service(faulty(FaultPlan((rule,))), [["ew0", "ew1"]] * 4)) as service:
        service.call(0, np.random.default_rng(0))
        assert service.refe.stats.stale_replies == struck
        service.recover(np.random.default_rng(1))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=10
)
@given(
    seed=st.integers(0, 2**32 - 1),
    faults=st.integers(1, 6),
    candidates=st.sampled_from(
        [[["ew0", "ew1"], ["ew1", "ew0"]] * 2, [["ew0"], ["ew0"], ["ew1"], ["ew1"]]]
    ),
)
def test_a_call_is_right_or_says_what_is_wrong_and_the_next_ones_are_right(
    faulty, seed, faults, candidates
):
    shape = SimpleNamespace(messages=4, longest_s=0.2, bits=8 * wire.HEADER_BYTES)
    requests = FaultPlan.random(seed, ["aw0"], faults=faults, directions=["request"], **vars(shape))
    replies = FaultPlan.random(
        seed, ["ew0", "ew1"], faults=faults, directions=["reply"], **vars(shape)
    )
    with contextlib.closing(
        Service(faulty(FaultPlan(requests.rules + replies.rules)), candidates)
    ) as service:
        rng = np.random.default_rng(seed)
        for n in range(6):
            service.call(n % 2, rng)
        service.recover(rng)
