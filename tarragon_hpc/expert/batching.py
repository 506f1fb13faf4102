"""When an EW starts a layer's batch (paper §5.2, DESIGN §6). Decides; no clock, no I/O.

Rows of the same layer from several AWs are worth running together: an expert's weights are read
once for all of them, and AWs that were answered together come back together for the next layer.
Two rules bring AWs together and keep them so:

Waiting. A free EW waits with a layer for the AWs that are on their way to it, but only for those
that have shown that they come, and not for longer than it can pay. Whenever a layer is about to
run, every active AW that has not passed it is *expected*; its next rows tell whether it came in
time, and how late. An AW that mostly comes is waited for: twice its usual delay, never longer than
`max_window`, and never longer than one batch instead of two saves (`cost.py`). Nor if AWs take
longer between an answer and their next rows than is saved: answered together they leave the EW
without work meanwhile, answered in turn they do not. So the window is closed at first and where
there is one AW, follows what was needed, and closes again for an AW that is waited for in vain.

Order. The layer that has waited longest goes first; but if AWs behind it in the round have rows
here too, those go first a few times, so that they catch up. That costs the EW nothing, and is how
AWs that are some layers apart (a new one, paper §5.4) come together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from tarragon_hpc.expert.cost import BatchCost

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

# An AW is waited for while it comes in about this share of the cases.
_TRUST = 0.75
# Weight of the newest observation: three arrivals in a row earn trust. Gaps are averaged over more,
# since the one between two steps is longer than the others.
_RATE = 1 / 4
_SLOW_RATE = 1 / 16
# Added to twice the usual delay, against the jitter of waking up.
_MARGIN_S = 20e-6
# How often a layer lets AWs behind it go first, and how many times its rows they may bring: a
# prompt must not hold up those that decode.
_OVERTAKEN = 4
_SIMILAR = 4

# Why a batch was started.
ALONE = "alone"  # nobody to wait for
COMPLETE = "complete"  # all that were waited for came
ENOUGH = "enough"  # min_rows
CLOSED = "closed"  # the window did
REPLAY = "replay"
REASONS = (ALONE, COMPLETE, ENOUGH, CLOSED, REPLAY)


class Run(NamedTuple, Generic[T]):
    """Start the batch of a layer: `items` in order of arrival, `waited` seconds by the first."""

    layer: int
    items: list[T]
    reason: str
    waited: float


class Wait(NamedTuple):
    """Nothing to start before `until` (infinity: before the next event)."""

    until: float


@dataclass(slots=True, eq=False)
class _Peer:
    """What is known about one AW. Layers are positions in the round."""

    incarnation: int
    frontier: int = -1  # the layer it sent rows for last; -1: none yet
    seen: float = 0.0  # when it sent something, or was answered
    queued: int = 0  # requests of it that wait here: it sends no other layer before the reply
    expected: int = -1  # the layer it is expected at; -1: none
    expected_since: float = 0.0
    given_up: bool = False  # waited for in vain, and not heard of since
    trust: float = 0.5
    delay: float = 0.0
    answered: float = 0.0  # when its last request was answered; 0: the next one is known
    gap: float = 0.0  # seconds from an answer to the next request


@dataclass(slots=True, eq=False)
class _Queue:
    """Rows of one layer that are started together."""

    position: int
    layer: int
    opened: float
    items: list[tuple[_Peer, int, object]] = field(default_factory=list)
    rows: int = 0
    replay: bool = False
    overtaken: int = 0
    held: bool = False


class Batcher(Generic[T]):
    """The queues of one EW. Times are seconds of any one monotonic clock.

    `layers` are the model's MoE layers, in order; an AW goes round them once per step.
    """

    def __init__(
        self, layers: Sequence[int], *, max_window_s: float, min_rows: int, active_s: float
    ) -> None:
        self._position = {layer: i for i, layer in enumerate(layers)}
        self._half = max(1, len(layers) // 2)
        self._max_window = max_window_s
        self._min_rows = min_rows
        self._active = active_s
        self._cost = BatchCost()
        self._idle_since: float | None = None  # since when a layer is being held
        self._running: set[_Peer] = set()
        self._running_rows = 0
        self._others = 1
        self._peers: dict[str, _Peer] = {}
        self._queues: dict[int, _Queue] = {}  # in the order in which they were opened

    def __repr__(self) -> str:
        queued = {q.layer: len(q.items) for q in self._queues.values()}
        return f"Batcher(peers={list(self._peers)}, queued={queued})"

    @property
    def queued(self) -> int:
        """Requests that have arrived and not been started."""
        # A copy: this and the next may be read while another thread changes the queues.
        return sum(len(q.items) for q in list(self._queues.values()))

    @property
    def window_s(self) -> float:
        """The longest wait that any AW would be granted now."""
        return max((self._patience(p) for p in list(self._peers.values())), default=0.0)

    def join(self, peer: str, incarnation: int) -> bool:
        """An AW connected; False if it is older than the one of that name that is there.

        A newer one replaces the older, whose rows are dropped. It takes its frontier from its
        first request (paper §5.4), and nobody waits for it before.
        """
        known = self._peers.get(peer)
        if known is not None:
            if known.incarnation > incarnation:
                return False
            self.leave(peer, known.incarnation)
        self._peers[peer] = _Peer(incarnation)
        return True

    def leave(self, peer: str, incarnation: int) -> None:
        """An AW is lost: nobody waits for it any more, and its rows are forgotten."""
        known = self._peers.get(peer)
        if known is None or known.incarnation != incarnation:
            return
        del self._peers[peer]
        for queue in list(self._queues.values()):
            queue.items = [item for item in queue.items if item[0] is not known]
            queue.rows = sum(rows for _, rows, _ in queue.items)
            if not queue.items:
                del self._queues[queue.position]

    def arrive(
        self,
        peer: str,
        incarnation: int,
        layer: int,
        rows: int,
        item: T,
        now: float,
        *,
        replay: bool = False,
    ) -> bool:
        """A request of an AW is there; False if the AW is unknown or of another incarnation.

        Raises KeyError for a layer without experts.
        """
        position = self._position[layer]
        known = self._peers.get(peer)
        if known is None or known.incarnation != incarnation:
            return False
        if known.expected >= 0:
            self._learn(known, position, now)
        if known.answered > 0:
            known.gap += _SLOW_RATE * (now - known.answered - known.gap)
            known.answered = 0.0
        known.frontier = position
        known.given_up = False
        known.seen = now
        known.queued += 1
        queue = self._queues.get(position)
        if queue is None:
            queue = self._queues[position] = _Queue(position, layer, now)
        queue.items.append((known, rows, item))
        queue.rows += rows
        queue.replay = queue.replay or replay
        return True

    def next(self, now: float) -> Run[T] | Wait:
        """The batch that a free EW starts now; replayed rows go before all others (paper §5.1)."""
        first: _Queue | None = None
        for queue in self._queues.values():
            if queue.replay:
                return self._run(queue, REPLAY, now)
            if first is None or (first.overtaken < _OVERTAKEN and self._behind(queue, first)):
                first = queue
        if first is None:
            return Wait(float("inf"))
        patience = self._expect_others(first, now)
        if first.rows >= self._min_rows:
            return self._run(first, ENOUGH, now)
        if patience == 0:
            return self._run(first, COMPLETE if first.held else ALONE, now)
        if self._idle_since is None:
            self._idle_since = now
        closes = self._idle_since + patience
        if closes <= now:
            for peer in self._peers.values():
                peer.given_up = peer.expected >= 0
            return self._run(first, CLOSED, now)
        first.held = True
        return Wait(closes)

    def finished(self, seconds: float, now: float) -> None:
        """The batch that was started last has been answered; it took this long to run."""
        self._cost.add(self._running_rows, seconds)
        for peer in self._running:
            peer.answered = now
            peer.seen = now  # it could not be heard of while it was owed the answer

    def _run(self, queue: _Queue, reason: str, now: float) -> Run[T]:
        for other in self._queues.values():
            if other is queue:
                break
            other.overtaken += 1
        del self._queues[queue.position]
        self._idle_since = None
        self._running = {peer for peer, _, _ in queue.items}
        self._running_rows = queue.rows
        for peer, _, _ in queue.items:
            peer.queued -= 1
        items: list[T] = [item for _, _, item in queue.items]  # type: ignore[misc]
        return Run(queue.layer, items, reason, now - queue.opened)

    def _behind(self, queue: _Queue, other: _Queue) -> bool:
        """Whether the AWs of a queue can join those of the other one if they go first."""
        return self._ahead(queue.position, other.position) and queue.rows <= _SIMILAR * other.rows

    def _expect_others(self, queue: _Queue, now: float) -> float:
        """Note who could come to a queue, and how long to wait for them (0: for nobody)."""
        patience = 0.0
        active = 0
        for peer in self._peers.values():
            if peer.frontier < 0 or now - peer.seen > self._active:
                continue
            active += 1
            if peer.queued == 0 and self._ahead(peer.frontier, queue.position):
                if peer.expected < 0:
                    peer.expected = queue.position
                    peer.expected_since = now if self._idle_since is None else self._idle_since
                patience = max(patience, self._patience(peer))
        self._others = max(1, active - 1)
        return patience

    def _learn(self, peer: _Peer, position: int, now: float) -> None:
        """Rows for `position` tell whether an AW came where it was expected, or is on its way."""
        delay = now - peer.expected_since
        came = delay <= min(self._max_window, self._cost.fixed) and (
            position == peer.expected or self._ahead(position, peer.expected)
        )
        peer.expected = -1
        peer.trust += _RATE * (came - peer.trust)
        if came:
            peer.delay += _RATE * (delay - peer.delay)

    def _patience(self, peer: _Peer) -> float:
        """How long to wait for an AW: 0 unless it usually comes."""
        fixed = self._cost.fixed
        if peer.given_up or peer.trust < _TRUST or peer.gap > fixed * self._others:
            return 0.0
        return min(self._max_window, fixed, 2 * peer.delay + _MARGIN_S)

    def _ahead(self, frontier: int, position: int) -> bool:
        """Whether an AW at `frontier` still has `position` before it in its round.

        Rounds have no beginning here: what lies within the next half of the round is ahead, the
        rest has been passed.
        """
        return (position - frontier - 1) % len(self._position) < self._half
