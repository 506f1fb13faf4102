"""One peer's two queue pairs: data, and control beside it (paper §4.1).

A slot goes in two writes on the data queue pair: everything but its sequence, then the sequence,
which a reliable connection puts into the peer's memory after what went before. Every message has a
completion, so that what is under way is known exactly. A probe is a write of no bytes on the
control queue pair: the peer's device answers it, whatever its process does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from tarragon_hpc import native
from tarragon_hpc.errors import ConnectFailed
from tarragon_hpc.transport.completions import first_failure
from tarragon_hpc.transport.rdma_offer import MTUS, Offer
from tarragon_hpc.transport.rdma_silence import Silence

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.config.schema import RdmaConfig
    from tarragon_hpc.transport import _verbs
    from tarragon_hpc.transport.rdma_device import OpenPort

_SEQUENCE, _CONTROL = 8, 64  # bytes of a slot before its data: see kernels/slots.hpp
_REST, _MESSAGE, _PROBE = 0, 1, 2  # what a work request is for; wr_id
_PROBES = 8


class RdmaLink:
    """Owns queue pairs and registrations; keeps both rings mapped until `close`.

    out: the ring that is written here, its slots of `out_bytes`; copied to the peer's
    inbound: the ring that the peer writes
    silent_loss_s: a peer that completes nothing for so long is lost
    All methods may be called from any thread. Raises ConnectFailed.
    """

    def __init__(
        self,
        port: OpenPort,
        settings: RdmaConfig,
        out: memoryview,
        slots: int,
        out_bytes: int,
        inbound: memoryview,
        silent_loss_s: float,
    ) -> None:
        device = port.device
        # A slot is used again only after its reply: at most `slots` messages are really under way,
        # and as many may be finished without anybody having looked.
        self._depth = 2 * slots
        self._piece = device.max_message
        self._pieces = -(-(out_bytes + _CONTROL - _SEQUENCE) // self._piece)
        requests = self._depth * (self._pieces + 1)
        if requests > device.max_requests:
            raise ConnectFailed(
                f"{slots} slots of {out_bytes} bytes need {requests} writes under way; {device} "
                f"allows {device.max_requests}, of {self._piece} bytes each"
            )
        self.answered = 0
        self._port: OpenPort | None = port
        self._settings = settings
        self._slots, self._out_bytes = slots, out_bytes
        self._rings = (out, inbound)
        self._silence = Silence(silent_loss_s)
        self._lock = threading.Lock()
        self._open = True
        self._failure: str | None = None
        self._told = False  # and there is nothing more to look for
        self._under_way = self._probing = 0
        self._backlog: deque[tuple[int, int]] = deque()
        self._writes: list[_verbs.Write] = []
        # By slot: its pieces, each chained to the one before it, the first to the sequence.
        self._messages: list[list[_verbs.Write]] = []
        self._on_lost: Callable[[str], None] = lambda reason: None
        self._on_answer: Callable[[], None] = lambda: None
        self._made: list[_verbs.Memory | _verbs.CompletionQueue | _verbs.QueuePair] = []
        try:
            self._out = device.register(out, remote=False)
            self._made.append(self._out)
            self._in = device.register(inbound, remote=True)
            self._made.append(self._in)
            self._completions = device.completion_queue(requests + _PROBES)
            self._made.append(self._completions)
            self._data = device.queue_pair(self._completions, requests)
            self._made.append(self._data)
            self._control = device.queue_pair(self._completions, _PROBES)
            self._made.append(self._control)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"RdmaLink({self._under_way} messages and {self._probing} probes under way)"

    def offer(self) -> Offer:
        """What the peer needs to connect to this end."""
        assert self._port is not None
        port = self._port.device.port
        return Offer(
            fabric=port.fabric,
            gid=port.gid or "",
            lid=port.lid,
            mtu=min(self._port.device.mtu, self._settings.mtu or MTUS[-1]),
            data=self._data.number,
            data_psn=self._data.first_packet,
            control=self._control.number,
            control_psn=self._control.first_packet,
            ring=self._in.address,
            rkey=self._in.rkey,
        )

    def connect(self, peer: Offer) -> None:
        """To the peer's queue pairs and ring."""
        mtu = min(self.offer().mtu, peer.mtu)
        for pair, number, first in (
            (self._data, peer.data, peer.data_psn),
            (self._control, peer.control, peer.control_psn),
        ):
            pair.connect(number, first, peer.gid, peer.lid, mtu, self._settings)
        for slot in range(self._slots):
            at = native.module.slot_offset(slot, self._out_bytes) - _CONTROL
            here, there = self._out.address + at, peer.ring + at
            last = self._data.write(
                _MESSAGE, (here, self._out.lkey), (there, peer.rkey), _SEQUENCE, inline=True
            )
            chain = [last]
            for piece in range(self._pieces):
                start = _SEQUENCE + piece * self._piece
                source = (here + start, self._out.lkey)
                target = (there + start, peer.rkey)
                chain.append(
                    self._data.write(
                        _REST, source, target, self._piece, signalled=False, then=chain[-1]
                    )
                )
            self._writes += chain
            self._messages.append(chain[1:])
        self._probe = self._control.write(_PROBE, (self._out.address, 0), (peer.ring, 0), 0)
        self._writes.append(self._probe)

    def start(self, on_lost: Callable[[str], None], on_answer: Callable[[], None]) -> None:
        """From now on tell, from any thread, that the peer is lost or that it answered a probe."""
        assert self._port is not None
        self._on_lost, self._on_answer = on_lost, on_answer
        self._port.pump.add(self)

    def posted(self, slot: int, sequence: int, nbytes: int) -> None:
        """Send a slot that was published in `out`; never waits. See `_native.CallNotifier`."""
        with self._lock:
            if not self._open or self._failure is not None:
                return
            if self._under_way >= self._depth:
                self._poll()
            if self._backlog or self._under_way >= self._depth:
                self._backlog.append((slot, nbytes))
            else:
                self._send(slot, nbytes)
            port = self._port
        if port is not None:
            port.pump.wake()

    def probe(self) -> None:
        """Ask the peer for a sign of life, unless enough questions are under way."""
        with self._lock:
            if not self._open or self._failure is not None or self._probing == _PROBES:
                return
            self._failure = self._control.post(self._probe)
            self._probing += 1
            port = self._port
        if port is not None:
            port.pump.wake()

    @property
    def busy(self) -> bool:
        """Whether there is anything to look for."""
        return not self._told and bool(self._under_way or self._probing or self._backlog)

    def look(self, now: float) -> bool:
        """See what has been completed; True if more is to come. For the pump."""
        with self._lock:
            if not self._open or self._told:
                return False
            before = self.answered
            heard = self.busy and self._poll()
            while self._backlog and self._under_way < self._depth and self._failure is None:
                self._send(*self._backlog.popleft())
            silent_s = self._silence.look(self.busy, heard, now)
            if silent_s is not None and self._failure is None:
                self._failure = f"silent for {silent_s:.1f} s"
            failure, answered = self._failure, self.answered > before
            self._told = failure is not None
        if answered:
            self._on_answer()
        if failure is not None:
            self._on_lost(failure)
        return self.busy

    def drain(self, seconds: float) -> None:
        """Wait, at most so long, until what was posted has reached the peer."""
        deadline = time.monotonic() + seconds
        while self.look(now := time.monotonic()) and now < deadline:
            time.sleep(0.0005)

    def close(self) -> None:
        """Let go of everything. Safe to call twice."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            port, self._port = self._port, None
            for made in reversed(self._made):
                made.close()
            for write in self._writes:
                write.close()
            self._rings = (memoryview(b""), memoryview(b""))
        assert port is not None
        port.pump.forget(self)

    # With the lock held.

    def _send(self, slot: int, nbytes: int) -> None:
        rest = _CONTROL - _SEQUENCE + nbytes
        for piece in self._messages[slot]:
            piece.set_nbytes(min(rest, self._piece))
            rest -= self._piece
            if rest <= 0:
                break
        self._failure = self._data.post(piece)
        self._under_way += 1

    def _poll(self) -> bool:
        """Whether anything has been completed."""
        found = self._completions.poll()
        for done in found:
            if done.kind != "ok":
                self._failure = self._failure or first_failure(found).text
                break
            if done.wr_id == _MESSAGE:
                self._under_way -= 1
            else:
                self._probing -= 1
                self.answered += 1
        return bool(found)
