"""Two queue pairs of a device that is made up: order, a full send queue, loss, silence."""

from __future__ import annotations

import itertools
import threading
import time
from types import SimpleNamespace

import pytest

from tarragon_hpc import native
from tarragon_hpc.config.schema import RdmaConfig
from tarragon_hpc.errors import ConnectFailed
from tarragon_hpc.transport.completions import completion
from tarragon_hpc.transport.rdma_link import RdmaLink
from tarragon_hpc.transport.rdma_ports import Port
from tarragon_hpc.transport.rdma_pump import RdmaPump

pytestmark = pytest.mark.native

SLOTS, NBYTES = 2, 100
PORT = Port("fake0", 1, "ACTIVE", "Ethernet", 0, "::ffff:a00:1", 0, 1024, None)
MESSAGE, PROBE = 1, 2


class FakePair:
    """Keeps what is posted: (wr_id, target, bytes) of each write, in order."""

    def __init__(self, device, number):
        self.device, self.number, self.first_packet = device, number, number + 1
        self.posted, self.peer, self.refuses = [], None, None

    def connect(self, number, first_packet, gid, lid, mtu, settings):
        self.peer = (number, first_packet, gid, mtu)

    def write(self, wr_id, source, target, nbytes, *, signalled=True, inline=False, then=None):
        made = SimpleNamespace(
            wr_id=wr_id, target=target, nbytes=nbytes, then=then, close=lambda: None
        )
        made.set_nbytes = lambda n: setattr(made, "nbytes", n)
        return made

    def post(self, write):
        while write is not None:
            self.posted.append((write.wr_id, write.target[0], write.nbytes))
            write = write.then
        return self.refuses

    def close(self):
        self.device.closed.append(f"pair {self.number}")


class FakeDevice:
    port, mtu = PORT, 2048

    def __init__(self, max_message=1 << 30):
        self.max_message, self.max_requests = max_message, 64
        self.closed, self.pairs, self.found = [], [], []
        self._numbers = itertools.count(10)

    def register(self, view, *, remote):
        name = "inbound" if remote else "out"
        address = 1 << (21 if remote else 20)
        return SimpleNamespace(
            address=address, lkey=1, rkey=2, close=lambda: self.closed.append(name)
        )

    def completion_queue(self, depth):
        return SimpleNamespace(poll=self._poll, close=lambda: self.closed.append("completions"))

    def queue_pair(self, completions, depth):
        self.pairs.append(FakePair(self, next(self._numbers)))
        return self.pairs[-1]

    def _poll(self):
        found, self.found = self.found, []
        return found

    def complete(self, wr_id, status=0, count=1):
        self.found += [completion(10, wr_id, status)] * count


class Rig:
    def __init__(self, device=None):
        self.device = device or FakeDevice()
        self.woken = 0
        pump = SimpleNamespace(add=lambda link: None, forget=lambda link: None, wake=self.wake)
        ring = memoryview(bytearray(native.module.ring_bytes(SLOTS, NBYTES)))
        port = SimpleNamespace(device=self.device, pump=pump)
        self.link = RdmaLink(port, RdmaConfig(mtu=1024), ring, SLOTS, NBYTES, ring, 3.0)
        self.link.connect(self.link.offer())
        self.data, self.control = self.device.pairs
        self.lost, self.answers = [], 0
        self.link.start(self.lost.append, self.answer)

    def wake(self):
        self.woken += 1

    def answer(self):
        self.answers += 1


def test_the_offer_has_both_queue_pairs_and_the_ring_that_the_peer_writes():
    rig = Rig()
    offer = rig.link.offer()
    assert (offer.data, offer.control, offer.ring, offer.rkey) == (10, 11, 1 << 21, 2)
    assert offer.mtu == 1024
    assert rig.data.peer == (10, 11, PORT.gid, 1024)
    assert rig.control.peer == (11, 12, PORT.gid, 1024)


def test_a_message_goes_before_its_sequence():
    rig = Rig()
    for slot, nbytes in ((0, 100), (1, 0), (0, 7)):
        rig.link.posted(slot, 1, nbytes)
    stride = native.module.slot_offset(1, NBYTES) - native.module.slot_offset(0, NBYTES)
    base = 1 << 21
    assert rig.data.posted == [
        (0, base + 8, 156),
        (MESSAGE, base, 8),
        (0, base + stride + 8, 56),
        (MESSAGE, base + stride, 8),
        (0, base + 8, 63),
        (MESSAGE, base, 8),
    ]


def test_one_longer_than_the_device_takes_goes_in_pieces():
    rig = Rig(FakeDevice(max_message=64))
    for nbytes in (100, 8, 9, 100):
        rig.link.posted(0, 1, nbytes)
    base = 1 << 21
    whole = [(0, base + 136, 28), (0, base + 72, 64), (0, base + 8, 64), (MESSAGE, base, 8)]
    one = [(0, base + 8, 64), (MESSAGE, base, 8)]
    two = [(0, base + 72, 1), (0, base + 8, 64), (MESSAGE, base, 8)]
    assert rig.data.posted == [*whole, *one, *two, *whole]


def test_more_than_the_device_has_room_for_is_refused():
    with pytest.raises(ConnectFailed, match="2 slots of 100 bytes need 84 writes"):
        Rig(FakeDevice(max_message=8))


def test_what_a_full_send_queue_does_not_take_follows_in_order():
    rig = Rig()
    for n in range(6):
        rig.link.posted(0, n, n)
    sizes = lambda: [n - 56 for what, _, n in rig.data.posted if what == 0]  # noqa: E731
    assert sizes() == [0, 1, 2, 3]
    rig.device.complete(MESSAGE)
    rig.link.posted(0, 6, 6)  # there is room, but not for the newest first
    assert sizes() == [0, 1, 2, 3]
    assert rig.link.look(0.0)
    assert sizes() == [0, 1, 2, 3, 4]
    rig.device.complete(MESSAGE, count=4)
    assert rig.link.look(0.1)
    assert sizes() == [0, 1, 2, 3, 4, 5, 6]
    rig.device.complete(MESSAGE, count=2)
    assert not rig.link.look(0.2)
    assert not rig.lost


def test_a_full_send_queue_is_looked_at_by_whoever_posts():
    rig = Rig()
    for n in range(4):
        rig.link.posted(0, n, n)
    rig.device.complete(MESSAGE, count=4)
    rig.link.posted(0, 4, 4)
    assert rig.data.posted[-2][2] == 60


def test_probes_are_answered_on_a_queue_pair_of_their_own():
    rig = Rig()
    for _ in range(20):
        rig.link.probe()
    assert rig.control.posted == [(PROBE, 1 << 21, 0)] * 8
    assert not rig.data.posted
    rig.device.complete(PROBE, count=3)
    assert rig.link.look(0.0)
    assert (rig.link.answered, rig.answers) == (3, 1)


def test_a_failure_is_told_with_its_cause_and_ends_all_posting():
    rig = Rig()
    rig.link.posted(0, 1, 1)
    rig.link.probe()
    rig.device.complete(MESSAGE, status=5)
    rig.device.complete(PROBE, status=12)
    assert not rig.link.look(0.0)
    assert rig.lost == ["unreachable (RETRY_EXC_ERR)"]
    assert not rig.link.busy  # or the pump would look for ever
    assert not rig.link.look(0.1)
    assert len(rig.lost) == 1
    before = len(rig.data.posted), len(rig.control.posted)
    rig.link.posted(1, 2, 1)
    rig.link.probe()
    assert (len(rig.data.posted), len(rig.control.posted)) == before
    assert rig.link.answered == 0


def test_a_queue_pair_that_takes_nothing_is_a_loss():
    rig = Rig()
    rig.data.refuses = "the queue pair takes no writes"
    rig.link.posted(0, 1, 1)
    rig.link.look(0.0)
    assert rig.lost == ["the queue pair takes no writes"]


def test_silence_is_a_loss_only_while_something_is_owed():
    rig = Rig()
    assert not rig.link.look(0.0)
    assert not rig.link.look(100.0)
    rig.link.posted(0, 1, 1)
    assert rig.link.look(100.0)
    assert rig.link.look(102.9)
    rig.link.posted(1, 2, 1)
    rig.device.complete(MESSAGE)
    assert rig.link.look(103.0)
    assert rig.link.look(105.9)
    assert not rig.link.look(106.0)
    assert rig.lost == ["silent for 3.0 s"]


def test_closing_leaves_nothing_and_takes_the_queue_pairs_first():
    rig = Rig()
    rig.link.close()
    rig.link.close()
    assert rig.device.closed == ["pair 11", "pair 10", "completions", "inbound", "out"]
    rig.link.posted(0, 1, 1)
    rig.link.probe()
    assert not rig.data.posted
    assert not rig.link.look(0.0)


def test_draining_waits_for_completions_and_not_for_ever():
    rig = Rig()
    rig.link.posted(0, 1, 1)
    threading.Timer(0.02, rig.device.complete, [MESSAGE]).start()
    rig.link.drain(20.0)
    assert not rig.link.busy
    rig.link.posted(0, 2, 1)
    rig.link.drain(0.01)
    assert rig.link.busy


class FakeLink:
    """Something is under way until it has been looked at so often."""

    def __init__(self, looks):
        self.left = looks
        self.idle = threading.Event()

    @property
    def busy(self):
        return self.left > 0

    def look(self, now):
        if self.left:
            self.left -= 1
        if not self.left:
            self.idle.set()
        return self.busy


def test_the_pump_looks_while_something_is_under_way_and_sleeps_otherwise():
    pump = RdmaPump("pump")
    links = [FakeLink(3), FakeLink(5)]
    before = threading.active_count()
    for link in links:
        pump.add(link)
    assert threading.active_count() == before + 1
    for _ in range(50):
        for link in links:
            assert link.idle.wait(20)
            link.idle.clear()
        links[0].left, links[1].left = 2, 1
        pump.wake()
    for link in links:
        assert link.idle.wait(20)
        pump.forget(link)
        pump.forget(link)
    assert threading.active_count() == before
    pump.add(links[0])
    links[0].left = 1
    links[0].idle.clear()
    pump.wake()
    assert links[0].idle.wait(20)
    pump.forget(links[0])
    assert threading.active_count() == before


class HeldLink(FakeLink):
    """Whoever asks whether it is busy is held until it is released."""

    def __init__(self):
        super().__init__(0)
        self.asked, self.release = threading.Event(), threading.Event()

    @property
    def busy(self):
        self.asked.set()
        assert self.release.wait(20)
        return False

    def look(self, now):
        return False


def test_a_thread_of_the_pump_ends_though_the_next_one_sleeps_already():
    pump, held, other = RdmaPump("pump"), HeldLink(), FakeLink(0)
    pump.add(held)
    assert held.asked.wait(20)  # about to sleep
    forgetting = threading.Thread(target=pump.forget, args=[held])
    forgetting.start()
    while repr(pump) != "RdmaPump(pump, 0 links)":
        time.sleep(0.001)
    pump.add(other)
    time.sleep(0.05)  # it has nothing to do, and sleeps
    held.release.set()
    forgetting.join(20)
    assert not forgetting.is_alive()
    other.idle.clear()
    other.left = 2
    pump.wake()
    assert other.idle.wait(20)
    pump.forget(other)
