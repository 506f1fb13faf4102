"""`faulty.py` on a clock that only waiting moves."""

from __future__ import annotations

import pytest

from tarragon_hpc.transport.base import Geometry
from tarragon_hpc.transport.fault_plan import (
    Corrupt,
    Delay,
    Drop,
    FaultPlan,
    Reorder,
    Rule,
    Sever,
)
from tarragon_hpc.transport.faulty import Faults
from tarragon_hpc.transport.inproc import (
    InprocConnector,
    InprocDoorbell,
    InprocListener,
    InprocNetwork,
)

SECRET = b"s" * 32


class Sim:
    """An echoing server `ew0` and a client in one thread; a wait takes a tenth of a second."""

    def __init__(self, *rules):
        self.now = 100.0
        self.network = InprocNetwork()
        plan = FaultPlan(rules)
        self.server_side = Faults(plan, InprocDoorbell(lambda: False), self.clock)
        self.client_side = Faults(plan, InprocDoorbell(self.tick), self.clock)
        self.bell = self.client_side.bell
        self.listener = self.server_side.listener(
            InprocListener(self.network, "ew0", 1, SECRET, self.server_side.bell)
        )
        self.client, self.server = self.join()

    def clock(self):
        return self.now

    def tick(self):
        self.now = round(self.now + 0.1, 6)
        return False

    def join(self):
        connector = self.client_side.connector(
            InprocConnector(self.network, "aw0", 1, SECRET, self.bell)
        )
        client = connector.connect("ew0", 1, self.listener.address(), Geometry(4, 16, 16))
        return client, self.listener.accepted()[0]

    def ask(self, count=1):
        slots = []
        for _ in range(count):
            slots.append(self.client.acquire())
            self.client.request(slots[-1])[:1] = b"x"
            self.client.post(slots[-1], 1)
        return slots

    def serve(self):
        count = 0
        while (request := self.server.poll()) is not None:
            self.server.reply(request.slot)[:1] = request.data
            self.server.send(request.slot, 1)
            count += 1
        return count

    def replies(self):
        return [s for s in range(4) if self.client.reply(s) is not None]


def reply(nth, action):
    return Rule("ew0", "reply", nth, action)


def request(nth, action):
    return Rule("aw0", "request", nth, action)


def test_the_bell_wakes_when_a_reply_is_due_and_not_before():
    sim = Sim(reply(2, Delay(0.5)))
    sim.ask(4)
    assert sim.serve() == 4
    assert sim.replies() == [0, 2, 3]
    seen = sim.bell.value()
    assert sim.bell.wait(seen, 0.3) == seen
    assert sim.now == 100.3
    assert sim.bell.wait(seen, 60.0) != seen
    assert sim.now == 100.5
    assert sim.replies() == [0, 1, 2, 3]
    seen = sim.bell.value()
    assert sim.bell.wait(seen, 0.2) == seen


def test_a_request_that_nobody_fetches_rings_once():
    sim = Sim(request(1, Delay(0.3)))
    bell = sim.server_side.bell
    sim.ask(2)
    assert sim.serve() == 0
    sim.now += 0.3
    seen = bell.value()
    assert bell.wait(seen, 0.0) == seen + 1
    assert bell.wait(seen + 1, 0.0) == seen + 1
    assert sim.serve() == 2


def test_a_reply_that_is_overtaken_is_seen_with_the_one_that_did():
    sim = Sim(reply(1, Reorder(9.0)))
    sim.ask(2)
    sim.serve()
    assert sim.client.reply(0) is None
    assert sim.client.reply(1) is not None
    assert sim.client.reply(0) is not None
    assert sim.now == 100.0


def test_slots_are_in_the_state_that_their_user_sees():
    sim = Sim(reply(1, Delay(0.1)), reply(2, Drop()))
    sim.ask(2)
    sim.serve()
    assert sim.client.owed() == 2
    with pytest.raises(RuntimeError, match="release of slot 0, which is posted"):
        sim.client.release(0)
    sim.client.abandon(0)
    sim.client.abandon(1)
    for what in ("reply", "release", "abandon"):
        with pytest.raises(RuntimeError, match=f"{what} of slot 1, which is abandoned"):
            getattr(sim.client, what)(1)
    assert sim.ask(2) == [2, 3]
    assert sim.client.acquire() is None
    sim.tick()
    assert sim.client.acquire() == 0
    assert sim.client.acquire() is None


def test_a_late_reply_to_a_lost_peer_is_never_seen():
    sim = Sim(reply(1, Delay(0.3)), reply(2, Corrupt(0)))
    sim.ask(2)
    sim.serve()
    assert sim.client.reply(0) is None
    sim.network.kill("ew0")
    sim.now += 1.0
    assert sim.client.lost == "killed"
    assert sim.client.reply(0) is None
    assert bytes(sim.client.reply(1)) == b"y"  # it had arrived
    seen = sim.bell.value()
    assert sim.bell.wait(seen, 0.2) == seen


def test_messages_are_counted_over_all_channels_of_a_peer():
    sim = Sim(reply(2, Sever()))
    sim.ask(3)
    sim.serve()
    sim.bell.wait(sim.bell.value(), 0.0)
    assert sim.client.lost == "severed at reply 2"
    assert sim.server.lost == "closed by peer"
    sim.client.close()
    sim.client, sim.server = sim.join()
    sim.ask(4)
    sim.serve()
    assert sim.replies() == [0, 1, 2, 3]


def test_an_empty_message_has_no_bit_to_flip():
    sim = Sim(reply(1, Corrupt(5)))
    sim.ask()
    got = sim.server.poll()
    sim.server.send(got.slot, 0)
    assert bytes(sim.client.reply(0)) == b""


def test_nothing_native_gets_past_the_faults():
    sim = Sim()
    assert not any(hasattr(x, "native") for x in (sim.client, sim.server, sim.bell))
