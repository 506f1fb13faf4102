"""The expert loop: requests of all AWs in, batched by layer, expert outputs back (paper §5.2).

One thread, which waits on one doorbell. Rows are read from the request slots and outputs written
to the reply slots; nothing is copied on the way. What a client sends is checked before it is used:
whatever it is, it is answered with a status or costs the client its channel, and nothing else.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from tarragon_hpc.errors import FrameError
from tarragon_hpc.expert.batching import Batcher, Run
from tarragon_hpc.expert.changes import Changes
from tarragon_hpc.expert.counters import Counters
from tarragon_hpc.expert.offer import Offer
from tarragon_hpc.ops.base import Segment
from tarragon_hpc.wire import dispatch as wire
from tarragon_hpc.wire.parse import ParsedDispatch, address_of, parse_dispatch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from concurrent.futures import Future

    from tarragon_hpc.config.schema import BatchingConfig
    from tarragon_hpc.models.spec import ModelSpec
    from tarragon_hpc.ops.base import ExpertBank, ExpertTensors
    from tarragon_hpc.transport.base import Doorbell, Listener, Request, ServerChannel

# The longest sleep without a reason: how late a stop is noticed if its ring got lost.
_IDLE_S = 1.0
# A drained worker leaves when its AWs have: or, should they stay connected, when they are silent.
_QUIET_S = 1.0

log = logging.getLogger(__name__)


class _Call(NamedTuple):
    """A request that waits for its batch; the memory behind its addresses is its channel's."""

    channel: ServerChannel
    slot: int
    parsed: ParsedDispatch


class ExpertServer:
    """Serves the experts of one bank to all AWs that connect.

    `serve` runs in one thread; `install`, `drop`, `stop` and `stats` may be called from any.
    """

    def __init__(
        self,
        bank: ExpertBank,
        listener: Listener,
        bell: Doorbell,
        spec: ModelSpec,
        incarnation: int,
        batching: BatchingConfig,
        *,
        shares_cpus: bool = False,
    ) -> None:
        self._bank = bank
        self._listener = listener
        self._bell = bell
        self._offer = Offer.of(spec, bank.experts(), incarnation)
        self._counters = Counters()
        self._batcher: Batcher[_Call] = Batcher(
            spec.moe_layers,
            max_window_s=batching.max_window_us * 1e-6,
            min_rows=batching.min_rows,
            active_s=batching.active_ms * 1e-3,
            shares_cpus=shares_cpus,
        )
        self._channels: list[ServerChannel] = []
        self._changes = Changes()
        self._dropped: frozenset[int] = frozenset()  # and not installed again
        self._stop: str | None = None
        self._drain = False
        self._last_request = time.monotonic()

    def __repr__(self) -> str:
        state = "serving" if self._stop is None else f"stopping ({self._stop})"
        return f"ExpertServer({len(self._channels)} AWs, {self._batcher.queued} queued, {state})"

    @property
    def experts(self) -> frozenset[int]:
        """All experts that are served now."""
        return self._offer.experts

    def serve(self) -> str:
        """Serve until `stop`; returns its reason. All channels and the listener are closed then."""
        try:
            while not self._finished():
                self.step()
        finally:
            self._changes.close("the worker is leaving")
            self._listener.close()
            for channel in self._channels:
                channel.close()
        assert self._stop is not None
        return self._stop

    def step(self, longest_s: float = _IDLE_S) -> None:
        """One round: take what has arrived, then run a batch, or wait until there may be one."""
        seen = self._bell.value()
        if self._changes:
            self._changes.apply()
        self._receive()
        now = time.monotonic()
        decision = self._batcher.next(now)
        if isinstance(decision, Run):
            self._run(decision)
        elif not self._finished():
            self._bell.wait(seen, min(decision.until - now, longest_s))

    def install(self, tensors: Mapping[tuple[int, int], ExpertTensors]) -> Future[frozenset[int]]:
        """Serve these experts too, by (layer, expert), in all layers; batches go on meanwhile.

        The future holds all experts that are served once it is done; RuntimeError or MemoryError
        if there was no room, ClusterError if the server has stopped. Raises what
        `ExpertBank.prepare` does.
        """
        prepared = self._bank.prepare(tensors)
        return self._change(lambda: self._install(prepared, frozenset(e for _, e in tensors)))

    def drop(self, experts: Collection[int]) -> Future[frozenset[int]]:
        """Serve these no more, and release their memory; as `install`.

        Dispatches to them are refused from then on, those in the queue included.
        """
        return self._change(lambda: self._remove(frozenset(experts)))

    def stop(self, reason: str, *, drain: bool) -> None:
        """End `serve`: at once, or, to drain, when no AW needs this worker any more.

        Draining, no new AW is let in, and those connected are served until they have left or
        have been silent for a second. A second call can only hurry.
        """
        self._drain = drain and (self._drain or self._stop is None)
        self._stop = self._stop or reason
        self._bell.ring()

    def stats(self) -> dict[str, float]:
        """Counters since the start, and what is going on now."""
        return {
            "clients": len(self._channels),
            "queued": self._batcher.queued,
            "window_us": self._batcher.window_s * 1e6,
            **self._counters.stats(),
        }

    def _change(self, change: Callable[[], frozenset[int]]) -> Future[frozenset[int]]:
        done = self._changes.submit(change)
        self._bell.ring()
        return done

    def _install(self, prepared: Any, experts: frozenset[int]) -> frozenset[int]:
        self._bank.add(prepared)
        self._dropped -= experts
        return self._serve_only(self._offer.experts | experts)

    def _remove(self, experts: frozenset[int]) -> frozenset[int]:
        self._dropped |= experts & self._offer.experts
        self._serve_only(self._offer.experts - experts)
        self._bank.remove(experts)
        return self._offer.experts

    def _serve_only(self, experts: frozenset[int]) -> frozenset[int]:
        self._offer = replace(self._offer, experts=experts)
        return experts

    def _finished(self) -> bool:
        if self._stop is None:
            return False
        if not self._drain or not self._channels:
            return True
        quiet = time.monotonic() - self._last_request >= _QUIET_S
        return quiet and self._batcher.queued == 0

    def _receive(self) -> None:
        for channel in self._listener.accepted():
            self._join(channel)
        gone = []
        for channel in self._channels:
            while (request := channel.poll()) is not None:
                if not self._take(channel, request):
                    gone.append(channel)
                    break
            else:
                if channel.lost is not None:
                    gone.append(channel)
        for channel in gone:
            reason = channel.lost or "dropped after a malformed dispatch"
            log.warning("%s.%d lost: %s", channel.peer, channel.peer_incarnation, reason)
            self._drop(channel)

    def _join(self, channel: ServerChannel) -> None:
        peer, incarnation = channel.peer, channel.peer_incarnation
        if self._stop is not None or not self._batcher.join(peer, incarnation):
            log.info("%s.%d refused: %s", peer, incarnation, self._stop or "an older incarnation")
            channel.close()
            return
        for other in [c for c in self._channels if c.peer == peer]:
            log.info("%s.%d replaced by %d", peer, other.peer_incarnation, incarnation)
            self._channels.remove(other)
            other.close()
        self._channels.append(channel)
        log.info("%s.%d connected", peer, incarnation)

    def _drop(self, channel: ServerChannel) -> None:
        """Forget an AW. Its memory is unmapped with it, so its requests must leave the queues."""
        self._batcher.leave(channel.peer, channel.peer_incarnation)
        self._channels.remove(channel)
        channel.close()

    def _take(self, channel: ServerChannel, request: Request) -> bool:
        """Queue or refuse a request; False if its channel is beyond use."""
        self._counters.requests += 1
        try:
            parsed = parse_dispatch(request.data, channel.geometry.reply_bytes)
        except FrameError as error:
            return self._reject(channel, request, str(error))
        header = parsed.header
        status = self._offer.status(header, parsed.groups, channel.peer_incarnation)
        now = self._last_request = time.monotonic()
        if status != wire.STATUS_OK:
            self._refuse(channel, request.slot, header, status)
        elif header.pairs == 0:
            self._answer(channel, request.slot, header, status, parsed.reply_nbytes, 0)
        else:
            self._batcher.arrive(
                channel.peer,
                header.incarnation,
                header.layer,
                header.pairs,
                _Call(channel, request.slot, parsed),
                now,
                replay=bool(header.flags & wire.FLAG_REPLAY),
            )
        return True

    def _reject(self, channel: ServerChannel, request: Request, problem: str) -> bool:
        """Refuse a malformed dispatch; False if it cannot even be answered."""
        log.error("%s.%d: malformed dispatch: %s", channel.peer, channel.peer_incarnation, problem)
        try:
            header = wire.unpack_request_header(request.data)
        except FrameError:
            self._counters.refused += 1
            return False
        self._refuse(channel, request.slot, header, wire.STATUS_BAD_REQUEST)
        return True

    def _refuse(
        self, channel: ServerChannel, slot: int, header: wire.RequestHeader, status: int
    ) -> None:
        self._counters.refused += 1
        self._answer(channel, slot, header, status, wire.HEADER_BYTES, 0)

    def _run(self, run: Run[_Call]) -> None:
        calls = [c for c in run.items if self._still_served(c)] if self._dropped else run.items
        segments = []
        pairs = 0
        for channel, slot, parsed in calls:
            row_bytes, pairs = parsed.row_bytes, pairs + parsed.header.pairs
            y = address_of(channel.reply(slot)) + wire.HEADER_BYTES
            for expert, first, count in parsed.groups:
                index = parsed.pair_rows_address + 4 * first
                segments.append(
                    Segment(expert, parsed.rows_address, index, count, y + first * row_bytes)
                )
        start = time.monotonic()
        status = wire.STATUS_OK
        try:
            self._bank.run(run.layer, segments)
        except (RuntimeError, MemoryError):  # out of device memory, say
            log.exception("a batch of layer %d failed", run.layer)
            status = wire.STATUS_FAILED
        seconds = time.monotonic() - start
        nanoseconds = int(seconds * 1e9)
        for channel, slot, parsed in calls:
            nbytes = parsed.reply_nbytes if status == wire.STATUS_OK else wire.HEADER_BYTES
            self._answer(channel, slot, parsed.header, status, nbytes, nanoseconds)
        self._batcher.finished(seconds, start + seconds)
        self._counters.ran(len(calls), pairs, seconds, run.waited, run.reason)

    def _still_served(self, call: _Call) -> bool:
        """Whether all experts of a call are there still; if not, it has been refused."""
        if not any(expert in self._dropped for expert, _, _ in call.parsed.groups):
            return True
        self._refuse(call.channel, call.slot, call.parsed.header, wire.STATUS_UNKNOWN_EXPERT)
        return False

    def _answer(
        self,
        channel: ServerChannel,
        slot: int,
        header: wire.RequestHeader,
        status: int,
        nbytes: int,
        compute_ns: int,
    ) -> None:
        answer = self._offer.answer(header, status, compute_ns)
        channel.reply(slot)[: wire.HEADER_BYTES] = answer
        channel.send(slot, nbytes)
