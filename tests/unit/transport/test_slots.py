"""The native slot bookkeeping does what the ledgers say, step by step."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc import native
from tarragon_hpc.transport.slots import ClientLedger, ServerLedger

SLOTS, NBYTES = 3, 64
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["acquire", "post", "reply", "release", "abandon", "poll", "send"]),
        st.integers(0, SLOTS - 1),
    ),
    max_size=60,
)


class Ledgers:
    """Both ledgers, joined by lists."""

    def __init__(self):
        self.posted, self.replied = [0] * SLOTS, [0] * SLOTS
        self.client = ClientLedger(SLOTS, lambda slot, seq: self.replied[slot] == seq)
        self.server = ServerLedger(SLOTS)

    def acquire(self, _):
        return self.client.acquire()

    def post(self, slot):
        self.posted[slot] = self.client.post(slot)

    def reply(self, slot):
        return self.client.reply(slot)

    def release(self, slot):
        self.client.release(slot)

    def abandon(self, slot):
        self.client.abandon(slot)

    def poll(self, _):
        slot, sequence = self.server.next()
        if self.posted[slot] != sequence:
            return None
        assert self.server.take()
        return slot

    def send(self, slot):
        self.replied[slot] = self.server.send(slot)


class Native:
    """The compiled slots in ordinary memory."""

    def __init__(self):
        n = native.module
        size = n.ring_bytes(SLOTS, NBYTES)
        self.requests, self.replies = aligned(size), aligned(size)
        bells = [n.Doorbell(aligned(n.BELL_BYTES), 0) for _ in range(2)]
        self.client = n.ClientSlots(self.requests, self.replies, SLOTS, NBYTES, NBYTES, bells[0])
        self.server = n.ServerSlots(self.requests, self.replies, SLOTS, NBYTES, NBYTES, bells[1])

    def acquire(self, _):
        return self.client.acquire()

    def post(self, slot):
        self.client.post(slot, 5)

    def reply(self, slot):
        return self.client.reply(slot) is not None

    def release(self, slot):
        self.client.release(slot)

    def abandon(self, slot):
        self.client.abandon(slot)

    def poll(self, _):
        found = self.server.poll()
        assert found is None or found[1] == 5
        return found and found[0]

    def send(self, slot):
        self.server.send(slot, 7)


def aligned(size):
    """Zeroed memory at a multiple of 64."""
    raw = memoryview(bytearray(size + 64))
    start = -native.module.address_of(raw) % 64
    return raw[start : start + size]


@pytest.mark.native
@given(STEPS)
def test_every_step_has_the_same_outcome(steps):
    sides = Ledgers(), Native()
    for what, slot in steps:
        outcomes = []
        for side in sides:
            try:
                outcomes.append(getattr(side, what)(slot))
            except RuntimeError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]


@given(STEPS)
def test_a_slot_is_never_given_out_while_its_reply_is_owed(steps):
    side = Ledgers()
    in_use = set()
    for what, slot in steps:
        with contextlib.suppress(RuntimeError):
            result = getattr(side, what)(slot)
            if what == "acquire" and result is not None:
                assert result not in in_use
                in_use.add(result)
            elif what == "send":
                in_use.discard(slot)


@pytest.mark.native
def test_a_peer_that_posts_to_a_slot_that_is_owed_is_found_out():
    side = Native()
    for _ in range(SLOTS):
        side.client.acquire()
    for slot in range(SLOTS):
        side.client.post(slot, 5)
        side.server.poll()
    offset = native.module.slot_offset(0, NBYTES) - 64
    side.requests[offset : offset + 8] = (SLOTS + 1).to_bytes(8, "little")
    assert side.server.poll() == (0, 2**64 - 1)


@pytest.mark.native
@pytest.mark.parametrize("slots", [0, SLOTS + 1, 2**32 - 1])
def test_memory_that_is_too_small_for_its_slots_is_refused(slots):
    n = native.module
    memory = aligned(n.ring_bytes(SLOTS, NBYTES))
    bell = n.Doorbell(aligned(n.BELL_BYTES), 0)
    with pytest.raises(ValueError, match="smaller than its slots"):
        n.ClientSlots(memory, memory, slots, NBYTES, NBYTES, bell)
    with pytest.raises(ValueError, match="smaller than its slots"):
        n.ServerSlots(memory, memory, SLOTS, NBYTES, 2**63, bell)
    with pytest.raises(ValueError, match="too small"):
        n.Doorbell(memoryview(bytearray(8)), 0)
