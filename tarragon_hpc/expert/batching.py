"""When an EW starts a layer's batch (paper §5.2, DESIGN §6). Decides; no clock, no I/O.

Rows of the same layer from several AWs are worth running together: an expert's weights are read
once for all of them, and AWs that were answered together come back together for the next layer.
Two rules bring AWs together and keep them so:

Waiting. A free EW waits with a layer for the AWs that are on their way to it, but only for those
that have shown that they come, and not for longer than it can pay. Whenever a layer is about to
run, every active AW that has not passed it is *expected*; its next rows tell whether it came. When
an AW that mostly comes is due follows from when it was answered last and how long it usually takes
from an answer to its next rows (between two steps longer than within one). It is waited for if it
is due before one batch instead of two would have been paid for (`cost.py`), and until it is clearly
late; never longer than `max_window` in all, and once missed not again before it is heard of: one
that was stopped costs a window at most. Nor if AWs take longer between an answer and their next
rows than is saved: answered together they leave the EW without work meanwhile, answered in turn
they do not. So the window is closed at first and where there is one AW, follows what was needed,
and closes again for an AW that is waited for in vain.

Where AWs compute on the EW's own CPUs (`shares_cpus`) an EW that waits costs nothing: the AWs have
the time. Whatever one batch saves is saved then, so only `max_window` bounds the wait.

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
# Weight of the newest observation: three arrivals in a row earn trust.
_RATE = 1 / 4
# An AW may be late by so many of its usual deviations, and by the jitter of waking up.
_DEVIATIONS = 4
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
class _Gap:
    """Seconds from an answer to the next rows: usual value and deviation."""

    usual: float = 0.0
    deviation: float = 0.0

    def learn(self, seconds: float) -> None:
        if self.usual == 0.0:
            self.usual = seconds
        off = seconds - self.usual
        self.usual += _RATE * off
        self.deviation += _RATE * (abs(off) - self.deviation)


@dataclass(slots=True, eq=False)
class _Peer:
    """What is known about one AW. Layers are positions in the round."""

    incarnation: int
    frontier: int = -1  # the layer it sent rows for last; -1: none yet
    seen: float = 0.0  # when it sent something, or was answered
    queued: int = 0  # requests of it that wait here: it sends no other layer before the reply
    expected: int = -1  # the layer it is expected at; -1: none
    expected_since: float = 0.0
    trust: float = 0.5
    answered: float = 0.0  # when its last request was answered
    owing: bool = False  # answered, and not heard of since
    missed: bool = False  # waited for in vain since it was heard of last
    within: _Gap = field(default_factory=lambda: _Gap())  # from an answer to the next layer's rows
    between: _Gap = field(default_factory=lambda: _Gap())  # the same where a step ends

    def gap(self, position: int) -> _Gap:
        """The gap before rows for `position`."""
        return self.within if position > self.frontier else self.between


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
    `shares_cpus`: AWs compute on this EW's CPUs.
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        max_window_s: float,
        min_rows: int,
        active_s: float,
        shares_cpus: bool = False,
    ) -> None:
        self._position = {layer: i for i, layer in enumerate(layers)}
        self._half = max(1, len(layers) // 2)
        self._max_window = max_window_s
        self._min_rows = min_rows
        self._active = active_s
        self._shares_cpus = shares_cpus
        self._cost = BatchCost()
        self._idle_since: float | None = None  # since when a layer is being held
        self.window_s = 0.0  # what the layer that was looked at last is granted; for `status`
        self._running: set[_Peer] = set()
        self._running_rows = 0
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
        if known.owing:
            known.gap(position).learn(now - known.answered)
            known.owing = known.missed = False
        known.frontier = position
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
        closes = self._expect_others(first, now)
        if first.rows >= self._min_rows:
            return self._run(first, ENOUGH, now)
        if closes is None:
            return self._run(first, COMPLETE if first.held else ALONE, now)
        if closes <= now:
            return self._run(first, CLOSED, now)
        if self._idle_since is None:
            self._idle_since = now
        first.held = True
        return Wait(closes)

    def finished(self, seconds: float, now: float) -> None:
        """The batch that was started last has been answered; it took this long to run."""
        self._cost.add(self._running_rows, seconds)
        for peer in self._running:
            peer.answered = now
            peer.seen = now  # it could not be heard of while it was owed the answer
            peer.owing = True

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

    def _expect_others(self, queue: _Queue, now: float) -> float | None:
        """Note who could come to a queue; until when to wait for them (None: for nobody)."""
        since = now if self._idle_since is None else self._idle_since
        limit = since + self._patience
        active = [
            p for p in self._peers.values() if p.frontier >= 0 and now - p.seen <= self._active
        ]
        closes: float | None = None
        for peer in active:
            if peer.queued or not self._ahead(peer.frontier, queue.position):
                continue
            if peer.expected < 0:
                peer.expected = queue.position
                peer.expected_since = since
            if peer.trust < _TRUST or not peer.owing or self._starves(peer, len(active)):
                continue
            gap = peer.gap(queue.position)
            due = peer.answered + gap.usual
            if due <= limit and not peer.missed:
                latest = min(limit, due + _DEVIATIONS * gap.deviation + _MARGIN_S)
                closes = latest if closes is None else max(closes, latest)
                peer.missed = latest <= now
        self.window_s = 0.0 if closes is None else max(0.0, closes - since)
        return closes

    @property
    def _patience(self) -> float:
        """The longest wait that can pay, in seconds."""
        if self._shares_cpus:
            return self._max_window
        return min(self._max_window, self._cost.fixed)

    def _starves(self, peer: _Peer, active: int) -> bool:
        """Whether answering it together with the others idles the EW for longer than it saves."""
        if self._shares_cpus:
            return False
        return peer.within.usual > self._cost.fixed * max(1, active - 1)

    def _learn(self, peer: _Peer, position: int, now: float) -> None:
        """Rows for `position` tell whether an AW came where it was expected, or is on its way."""
        delay = now - peer.expected_since
        came = delay <= self._patience and (
            position == peer.expected or self._ahead(position, peer.expected)
        )
        peer.expected = -1
        peer.trust += _RATE * (came - peer.trust)

    def _ahead(self, frontier: int, position: int) -> bool:
        """Whether an AW at `frontier` still has `position` before it in its round.

        Rounds have no beginning here: what lies within the next half of the round is ahead, the
        rest has been passed.
        """
        return (position - frontier - 1) % len(self._position) < self._half
