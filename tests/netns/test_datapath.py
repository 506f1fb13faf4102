"""A REFE and echo EWs on other hosts: links fail and heal, and every row that comes is right."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing

import numpy as np
import pytest

from tarragon_hpc.datapath.combine import from_float32
from tarragon_hpc.datapath.ert import ERT
from tarragon_hpc.datapath.refe import Refe
from tarragon_hpc.datapath.report import OVERDUE, SILENT, Clearance, Failover, Suspicion
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.wire.common import Peer
from tests.netns.echo_ew import EXPERTS, HIDDEN, SECRET, SILENT_LOSS_S, TOP_K
from tests.netns.slow_wire import slow_wire

pytestmark = pytest.mark.native

NAMES = ("ew0", "ew1")
ROWS = 24
PATIENCE_S = 20.0
DELAY_MS = 15
_INCARNATIONS = itertools.count(1)


class Ew:
    """An echo EW's process on its host."""

    def __init__(self, hosts, name, incarnation=1, address=None):
        command = [*hosts.prefix(name), sys.executable, "-m", "tests.netns.echo_ew"]
        command += [name, str(incarnation), address or hosts.address(name)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        line = self.process.stdout.readline()
        assert line, f"{name} ended with status {self.process.wait()}"
        self.peer = Peer(name, incarnation, json.loads(line))

    def close(self):
        self.process.kill()
        self.process.communicate()


class Aw:
    """A REFE that is kept busy. Every expert has both EWs, half of them ew0 first."""

    def __init__(self, ews, incarnation):
        from tarragon_hpc.transport.tcp import TcpConnector

        self.ews = ews
        self.bell = ProcessDoorbell()
        self.reports = []
        connector = TcpConnector("aw0", incarnation, SECRET, self.bell, silent_loss_s=SILENT_LOSS_S)
        self.refe = Refe(
            worker="aw0",
            incarnation=incarnation,
            connector=connector,
            bell=self.bell,
            experts=EXPERTS,
            top_k=TOP_K,
            hidden=HIDDEN,
            dtype="bfloat16",
            slots=2,
            slot_rows=16,
            reply_timeout_s=PATIENCE_S,
            report=self.reports.append,
        )
        self._rng = np.random.default_rng(0)
        self.epoch = 0
        self.longest_s = 0.0
        self.used = Counter()

    def table(self):
        self.epoch += 1
        table = [NAMES if expert % 2 else NAMES[::-1] for expert in range(EXPERTS)]
        peers = {name: ew.peer for name, ew in self.ews.items()}
        return self.refe.apply_table(ERT.of(self.epoch, table), peers)

    def call(self):
        """One expert_io, more rows than fit into a slot; what comes back must be right."""
        rng = self._rng
        hidden = from_float32(rng.standard_normal((ROWS, HIDDEN)).astype(np.float32), "bfloat16")
        ids = np.argsort(rng.random((ROWS, EXPERTS)), axis=1)[:, :TOP_K].astype(np.int32)
        weights = np.full((ROWS, TOP_K), 1 / TOP_K, np.float32)  # the sum of echoes is the row
        out = np.zeros_like(hidden)
        began = time.monotonic()
        before = dict(self.refe.stats.latency_s)
        self.refe.expert_io(0, hidden, ids, weights, out)
        self.longest_s = max(self.longest_s, time.monotonic() - began)
        assert out.tobytes() == hidden.tobytes()
        self.used.update(w for w, s in self.refe.stats.latency_s.items() if before.get(w) != s)

    def calls(self, seconds, until=None):
        """Calls for so long, or until something is so, which must then come to be."""
        end = time.monotonic() + seconds
        while not (until and until()):
            if time.monotonic() > end:
                assert until is None, self.reports
                return
            self.call()

    def told(self, kind, peer):
        return [r for r in self.reports if isinstance(r, kind) and r.peer == peer]

    def serves(self, name):
        """Whether an EW has answered since, as in health."""
        self.used.clear()
        return lambda: self.used[name] >= 20

    def close(self):
        self.refe.close()
        self.bell.close()


@pytest.fixture(scope="module")
def hosts(make_hosts):
    return make_hosts(*NAMES)


@pytest.fixture(scope="module")
def ews(hosts):
    """The processes that serve, by name."""
    running = {name: Ew(hosts, name) for name in NAMES}
    yield running
    for ew in running.values():
        ew.close()


@pytest.fixture
def world(ews, hosts):
    aw = Aw(ews, next(_INCARNATIONS))
    try:
        assert aw.table() == {}
        aw.calls(0.3)
        aw.longest_s = 0.0
        yield aw
    finally:
        for name in NAMES:
            hosts.heal(name)
        aw.close()


FAULTS = {
    "cut": lambda hosts: hosts.cut("ew1"),
    "silent": lambda hosts: hosts.silence("ew1"),
    "deaf": lambda hosts: hosts.silence("ew1", "in"),
    "mute": lambda hosts: hosts.silence("ew1", "out"),
}


@pytest.mark.parametrize("lasts_s", [0.3, SILENT_LOSS_S + 1.5], ids=["short", "long"])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_ew_out_of_reach_is_masked_and_used_again_once_it_is_back(world, hosts, fault, lasts_s):
    """Short: the connections survive. Long: both ends give them up, and connect anew."""
    FAULTS[fault](hosts)
    world.calls(5, lambda: world.told(Failover, "ew1"))
    world.calls(lasts_s)
    assert (world.refe.down().keys() == {"ew1"}) == (lasts_s > SILENT_LOSS_S)
    assert world.longest_s < 2.0
    (first, *_) = world.told(Failover, "ew1")
    since = world.reports[world.reports.index(first) :]
    assert not [r for r in since if isinstance(r, Clearance) and r.peer == "ew1"]
    assert first.how in (SILENT, OVERDUE)
    assert first.answered - first.detected < 1.0
    hosts.heal("ew1")
    world.calls(PATIENCE_S, world.serves("ew1"))
    assert world.refe.down() == {}


def test_loss_of_packets_costs_time_and_nothing_else(world, hosts):
    hosts.lossy("ew1", 5)
    world.calls(3.0)
    hosts.heal("ew1")
    world.calls(PATIENCE_S, world.serves("ew1"))
    assert world.refe.down() == {}
    assert world.longest_s < 2.0


def test_an_ew_to_which_the_way_becomes_long_is_overdue_and_used_again(world, hosts):
    with slow_wire(hosts, "ew1", DELAY_MS):
        world.calls(PATIENCE_S, lambda: world.told(Failover, "ew1"))
    world.calls(PATIENCE_S, world.serves("ew1"))
    assert world.refe.down() == {}
    assert world.longest_s < 2.0


def test_an_ew_that_has_always_been_far_away_is_waited_for(ews, hosts):
    with slow_wire(hosts, "ew1", DELAY_MS), closing(Aw(ews, next(_INCARNATIONS))) as aw:
        assert aw.table() == {}
        aw.calls(PATIENCE_S, aw.serves("ew1"))
        assert aw.refe.stats.latency_s["ew1"] >= 2 * DELAY_MS / 1000
        assert aw.refe.down() == {}
        assert aw.longest_s < 2.0


def test_a_killed_ew_is_masked_and_its_successor_used(world, hosts):
    world.ews["ew1"].process.kill()
    world.calls(5, lambda: world.told(Suspicion, "ew1"))
    world.calls(0.3)
    assert world.refe.down().keys() == {"ew1"}
    world.ews["ew1"].close()
    world.ews["ew1"] = Ew(hosts, "ew1", 2)
    world.table()
    world.calls(PATIENCE_S, world.serves("ew1"))
    assert world.refe.down() == {}
    assert world.longest_s < 2.0
