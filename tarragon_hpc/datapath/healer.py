"""What a REFE does about failing EWs, on its own and at once (paper §4.2, §5.1). No head is needed.

    lost     (exit, end of connection, broken protocol)   its unanswered rows go to the next holder
    silent   (no answer to probes: stopped, cut off)      they are asked of the next holder as well;
    overdue  (alive, but no progress)                     the first answer counts
    nobody serves an expert                               wait for a table that says otherwise, or
                                                          leave the expert out (masking.py)

Rows travel in pieces (reroute.py), marked as replays, which EWs serve first. An EW that was overdue
gets work again once it owes nothing. Everything is reported (report.py) as it happens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tarragon_hpc.datapath import masking
from tarragon_hpc.datapath.report import LOST, OVERDUE, SILENT, Failover
from tarragon_hpc.datapath.reroute import all_of, split, without
from tarragon_hpc.datapath.routes import owners_of
from tarragon_hpc.datapath.ticket import Outage
from tarragon_hpc.errors import DispatchRefused, ExpertUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tarragon_hpc.datapath.ert import ERT
    from tarragon_hpc.datapath.exchange import Exchange, Failure
    from tarragon_hpc.datapath.inflight import Owed
    from tarragon_hpc.datapath.peers import Peers
    from tarragon_hpc.datapath.reroute import Piece
    from tarragon_hpc.datapath.stats import RefeStats
    from tarragon_hpc.datapath.ticket import Ticket

# While rows wait for an expert, peers that are down are looked at again this often.
_RETRY_S = 0.5


class Healer:
    """Of one REFE, in its thread.

    ert: the table in use
    mask: leave experts out that nobody serves, instead of waiting up to `missing_timeout_s`
    """

    def __init__(
        self,
        peers: Peers,
        exchange: Exchange,
        stats: RefeStats,
        *,
        mask: bool,
        missing_timeout_s: float,
        reply_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.ert: ERT | None = None
        self._peers = peers
        self._links = peers.links
        self._exchange = exchange
        self._stats = stats
        self._mask = mask
        self._missing_timeout_s = missing_timeout_s
        self._reply_timeout_s = reply_timeout_s
        self._clock = clock
        exchange.on_failure = self._failed
        exchange.on_unusable = self._unusable

    def act(self, ticket: Ticket) -> bool:
        """Do what is due about a ticket's failures; True if rows may have moved.

        Raises ExpertUnavailable if nobody has served an expert for too long, DispatchRefused if the
        only EW that could compute some rows refuses to.
        """
        now = self._clock()
        if self._peers.adopt():
            self._peers.renew()
        self._expired(ticket, now)
        self._silent(ticket, now)
        self._overdue(ticket, now)
        rescue = ticket.rescue
        if rescue is None:
            return False
        moved = bool(rescue.homeless)
        self._route(ticket, now)
        if rescue.orphans:
            self._links.retry(now)
            moved |= self._orphans(ticket, now)
        return moved

    def answered(self, ticket: Ticket, answers: Iterable[Owed]) -> None:
        """Report failures that are masked now: somebody else has answered."""
        if ticket.rescue is None:
            return
        for owed in answers:
            outage = ticket.rescue.outages.get(owed.piece.blame) if owed.piece else None
            if owed.piece is None or outage is None or outage.told:
                continue
            outage.told = True
            self._peers.report(
                Failover(
                    owed.piece.blame,
                    outage.incarnation,
                    outage.how,
                    outage.detected,
                    outage.rerouted or outage.detected,
                    self._clock(),
                    outage.pairs,
                )
            )

    def next_look(self, ticket: Ticket) -> float:
        """Until when a ticket can be left to itself, if nothing arrives."""
        rescue = ticket.rescue
        hedged = frozenset(rescue.hedged) if rescue else frozenset()
        moments = [ticket.inflight.next_look(hedged)]
        moments += [
            self._peers.probes.next_look(o.worker, o.sent)
            for o in ticket.inflight.unanswered
            if o.sequence not in hedged
        ]
        if rescue is not None and rescue.orphans and rescue.since is not None:
            moments += [rescue.since + self._missing_timeout_s, self._clock() + _RETRY_S]
        if ticket.blocked_since is not None:
            moments.append(ticket.blocked_since + self._reply_timeout_s)
        return min((m for m in moments if m is not None), default=float("inf"))

    def stuck(self, ticket: Ticket, worker: str) -> None:
        """Every slot to an EW has been held by messages given up before, for too long."""
        self._stats.deadlines += 1
        self._peers.cut(worker, self._late())
        ticket.blocked_since = None

    # Failures.

    def _failed(self, ticket: Ticket, failure: Failure) -> None:
        """A message will not be answered: what nobody else was asked for has to be routed."""
        owed = failure.owed
        if failure.refused and self._links.usable(owed.worker) is not None:
            self._peers.avoid(owed.worker, failure.reason)
        else:
            self._peers.lose(owed.worker, failure.reason)
        self._begin_outage(ticket, owed.worker, owed.incarnation, LOST)
        self._rehome(ticket, owed, failure.reason if failure.refused else "")

    def _unusable(self, ticket: Ticket, worker: str) -> None:
        channel = self._links.channels.get(worker)
        if channel is None:
            return  # nobody, or an EW that has left the table
        if channel.lost is not None:
            self._peers.lose(worker, channel.lost)
        how = LOST if channel.lost is not None else OVERDUE
        self._begin_outage(ticket, worker, channel.peer_incarnation, how)

    def _expired(self, ticket: Ticket, now: float) -> None:
        """Give those up that have not answered for a very long time."""
        for owed in ticket.inflight.expired(now):
            self._stats.deadlines += 1
            self._peers.cut(owed.worker, self._late())
            if ticket.inflight.awaits(owed):
                ticket.inflight.withdraw(owed)
                self._begin_outage(ticket, owed.worker, owed.incarnation, OVERDUE)
                self._rehome(ticket, owed, "")

    def _silent(self, ticket: Ticket, now: float) -> None:
        """Probe those that have owed a reply for a while; ask others once they are silent."""
        hedged = ticket.rescue.hedged if ticket.rescue else frozenset()
        waiting = [o for o in ticket.inflight.unanswered if o.sequence not in hedged]
        silent = set()
        for worker in {o.worker for o in waiting}:
            mine = [o for o in waiting if o.worker == worker]
            channel = mine[-1].channel
            ask, is_silent = self._peers.probes.look(
                worker, min(o.sent for o in mine), channel.answered, now
            )
            if is_silent:
                silent.add(worker)
            elif ask:
                channel.probe()
        if silent:
            self._hedge(ticket, [o for o in waiting if o.worker in silent], SILENT, now)

    def _overdue(self, ticket: Ticket, now: float) -> None:
        hedged = ticket.rescue.hedged if ticket.rescue else frozenset()
        late = ticket.inflight.overdue(now, hedged)
        if late:
            self._hedge(ticket, late, OVERDUE, now)

    def _hedge(self, ticket: Ticket, late: list[Owed], how: str, now: float) -> None:
        """Ask others for what these EWs owe, and avoid them for a while."""
        rescue = ticket.rescued()
        for owed in late:
            rescue.hedged.add(owed.sequence)
            self._stats.hedged += 1
            what = "no answer to probes" if how == SILENT else "no reply"
            self._peers.avoid(owed.worker, f"{what} for {now - owed.sent:.3f} s")
        self._peers.renew()
        for owed in late:
            self._begin_outage(ticket, owed.worker, owed.incarnation, how)
            self._rehome(ticket, owed, "")

    def _begin_outage(self, ticket: Ticket, worker: str, incarnation: int, how: str) -> None:
        """Clock a failure from its first sign."""
        outage = Outage(incarnation, how, self._clock())
        ticket.rescued().outages.setdefault(worker, outage)

    def _rehome(self, ticket: Ticket, owed: Owed, refused: str) -> None:
        """Have the groups of a failed or overdue message routed that nobody else is asked for."""
        rescue, chunk = ticket.rescued(), ticket.chunks[owed.chunk]
        piece = owed.piece or all_of(owed.chunk, owed.part, chunk.whole(owed.part), owed.worker)
        taken: set[int] = set()
        if owed.part in chunk.assemblies:
            taken |= set(piece.groups) - chunk.assemblies[owed.part].groups
        for other in ticket.inflight.of(owed.chunk, owed.part):
            if other.sequence not in rescue.hedged and other is not owed:
                taken |= set(other.piece.groups if other.piece else piece.groups)
        for waiting in (*rescue.homeless, *rescue.orphans, *(p for _, p in rescue.queue)):
            if (waiting.chunk, waiting.part) == (owed.chunk, owed.part):
                taken |= set(waiting.groups)
        rest = without(piece, taken)
        if rest is not None:
            refusers = rest.refusers | {owed.worker} if refused else rest.refusers
            rescue.homeless.append(
                replace(rest, blame=owed.worker, refused=refused, refusers=refusers)
            )

    # Routing again.

    def _route(self, ticket: Ticket, now: float) -> None:
        rescue = ticket.rescued()
        if not rescue.homeless or self.ert is None:
            return
        pieces, rescue.homeless = rescue.homeless, []
        late = {o.worker for o in ticket.inflight.unanswered if o.sequence in rescue.hedged}
        workers = self.ert.workers
        for piece in pieces:
            bad = (*piece.refusers, piece.blame, *self._peers.health.avoided, *late)
            avoid = dict.fromkeys(bad)  # the worst first, each once
            owners = owners_of(self.ert, self._peers.lost().keys(), tuple(avoid))
            for owner, part in split(piece, owners).items():
                if owner == len(workers):
                    rescue.orphans.append(part)
                    rescue.since = now if rescue.since is None else rescue.since
                    continue
                worker = workers[owner]
                if piece.refused and worker in piece.refusers:
                    raise DispatchRefused(worker, piece.refused)
                if self._asked_already(ticket, worker, part):
                    continue  # there is nobody else: its answer is waited for
                rescue.queue.append((worker, part))
                outage = rescue.outages.get(part.blame)
                if outage is not None:
                    outage.rerouted = outage.rerouted or now
                    outage.pairs += part.pairs

    def _asked_already(self, ticket: Ticket, worker: str, piece: Piece) -> bool:
        channel = self._links.channels[worker]
        return any(
            o.channel is channel and (o.piece is None or set(piece.groups) <= set(o.piece.groups))
            for o in ticket.inflight.of(piece.chunk, piece.part)
        )

    def _orphans(self, ticket: Ticket, now: float) -> bool:
        """Rows that nobody can compute; True if that has changed."""
        rescue = ticket.rescued()
        if self._mask:
            orphans, rescue.orphans = rescue.orphans, []
            for piece in orphans:
                self._leave_out(ticket, piece)
            return True
        generation = self._peers.generation
        if generation != ticket.generation:
            ticket.generation = generation
            rescue.homeless, rescue.orphans = rescue.orphans, []
            self._route(ticket, now)
            return True
        assert rescue.since is not None
        if now - rescue.since >= self._missing_timeout_s:
            experts = tuple(sorted({e for piece in rescue.orphans for e in piece.experts}))
            raise ExpertUnavailable(experts, self.why_missing(experts))
        return False

    def _leave_out(self, ticket: Ticket, piece: Piece) -> None:
        chunk = ticket.chunks[piece.chunk]
        masked = masking.masked_pairs(chunk, piece.experts)
        chunk.masked = masked if chunk.masked is None else chunk.masked | masked
        self._stats.masked_pairs += piece.pairs
        assembly = chunk.assembly(piece.part)  # zeros, which the weights make doubly sure
        assembly.groups -= set(piece.groups)
        if not assembly.groups:
            self._exchange.settle(ticket, chunk, piece.part, assembly.buffer)

    def _late(self) -> str:
        return f"did not answer within {self._reply_timeout_s:.3f} s"

    def why_missing(self, experts: tuple[int, ...]) -> str:
        """What has become of the holders of some experts, in words."""
        assert self.ert is not None
        holders = dict.fromkeys(w for e in experts for w in self.ert.candidates[e])
        reasons = self._links.down
        return "; ".join(f"{w}: {reasons.get(w, 'lost')}" for w in holders) or "no worker holds it"
