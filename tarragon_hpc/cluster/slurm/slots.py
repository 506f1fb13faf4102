"""Who is where in an allocation, and where the next one goes. Pure; a `Slots` is immutable.

A slot is room for one AW or EW on a node. CSs and a standby head take none.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from tarragon_hpc.ids import Role, parse_worker_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tarragon_hpc.cluster.slurm.allocation import Allocation
    from tarragon_hpc.cluster.slurm.resources import Component


class Slot(NamedTuple):
    """The number-th of a node that belongs to a component of the allocation."""

    part: int
    node: str
    number: int

    def __str__(self) -> str:
        return f"slot {self.number} of {self.node}"


class Use(StrEnum):
    """What a slot is used for."""

    WORKER = "worker"
    LOADING = "loading"  # by a spare that still imports
    WARM = "warm"  # by a spare that waits to become a worker
    REST = "rest"  # by what is left of a worker, and has not been seen to be gone


class Holder(NamedTuple):
    """Who has a slot. name: of the step, such as ew0.2 or spare3."""

    name: str
    use: Use


class Choice(NamedTuple):
    """Where a worker goes. spare: the step there that it becomes, if any."""

    slot: Slot
    spare: str
    reason: str


class Node(NamedTuple):
    """A node for something that takes no slot."""

    part: int
    name: str


@dataclass(frozen=True, slots=True)
class Slots:
    """roles: of each component that is there. bad: nodes not to be used, and why. last: the node
    where each worker was last, also of those that are gone.
    """

    order: tuple[Slot, ...]
    nodes: tuple[Node, ...]
    roles: Mapping[int, frozenset[Role]]
    held: Mapping[Slot, Holder] = field(default_factory=dict)
    bad: Mapping[str, str] = field(default_factory=dict)
    last: Mapping[str, str] = field(default_factory=dict)

    def take(self, slot: Slot, name: str, use: Use) -> Slots:
        """With a slot in use. `name` of a worker is its incarnation, such as ew0.2."""
        last = self.last
        if use is Use.WORKER:
            last = {**last, name.partition(".")[0]: slot.node}
        return replace(self, held={**self.held, slot: Holder(name, use)}, last=last)

    def free(self, slot: Slot, name: str) -> Slots:
        """With a slot that `name` does not hold any more, if it did."""
        if slot not in self.held or self.held[slot].name != name:
            return self
        return replace(self, held={s: h for s, h in self.held.items() if s != slot})

    def spoil(self, node: str, why: str) -> Slots:
        """Without a node, from now on; the first reason is kept."""
        return replace(self, bad={node: why, **self.bad})

    def of(self, name: str) -> Slot | None:
        """The slot that a step holds."""
        return next((slot for slot, holder in self.held.items() if holder.name == name), None)

    @property
    def usable(self) -> list[Slot]:
        """Slots of nodes that are not bad."""
        return [slot for slot in self.order if slot.node not in self.bad]

    @property
    def idle(self) -> list[Slot]:
        """Usable slots that nobody holds."""
        return [slot for slot in self.usable if slot not in self.held]

    def serves(self, slot: Slot, role: Role) -> bool:
        """Whether workers of a role may use it."""
        return role in self.roles[slot.part]


def slots_of(
    allocation: Allocation, parts: Sequence[Component], before: Slots | None = None
) -> Slots:
    """All slots of an allocation; what is known from before is kept where it still applies."""
    here = [(p, node) for p in parts if p.number < len(allocation.nodes)
            for node in allocation.nodes[p.number]]  # fmt: skip
    order = tuple(
        Slot(part.number, node, number)
        for part, node in here
        if part.roles & {Role.AW, Role.EW}
        for number in range(part.config.slots)
    )
    nodes = tuple(Node(part.number, node) for part, node in here)
    fresh = Slots(order, nodes, {part.number: part.roles for part in parts})
    if before is None:
        return fresh
    gone = {slot.node for slot in before.order} - {node.name for node in nodes}
    lost = dict.fromkeys(gone, "it left the allocation")
    # Who is on a node that is gone still holds its slot, until its end is reported.
    return replace(fresh, held=before.held, bad={**lost, **before.bad}, last=before.last)


def choose(slots: Slots, worker: str, *, warm: bool = True) -> Choice | None:
    """Where the next incarnation of a worker goes; None: there is no slot left for it.

    First a warm spare on another node than the last time; then for an AW one that still imports and
    any free slot, for an EW, whose imports are short, the other way round; then the node where it
    died. Among equals the node with the fewest workers of its
    role, then with the fewest at all. warm: it may become a spare's process.
    """
    role, _ = parse_worker_id(worker)
    last = slots.last.get(worker)
    uses = _COLD if not warm else _WANTED if role is Role.AW else _WANTED_BY_EWS
    candidates = [
        slot
        for slot in slots.usable
        if slots.serves(slot, role) and (slot not in slots.held or slots.held[slot].use in uses)
    ]
    if not candidates:
        return None
    mates = Counter(slot.node for slot, who in _workers(slots) if who.startswith(role))
    load = Counter(slot.node for slot, _ in _workers(slots))

    def rank(slot: Slot) -> tuple[bool, int, int, int, int]:
        holder = slots.held.get(slot)
        kind = uses.index(holder.use if holder else None)
        return slot.node == last, kind, mates[slot.node], load[slot.node], slots.order.index(slot)

    best = min(candidates, key=rank)
    holder = slots.held.get(best)
    return Choice(best, holder.name if holder else "", _reason(best, holder, last))


def no_slot(slots: Slots, worker: str) -> str:
    """Why `choose` found none, in words."""
    role, _ = parse_worker_id(worker)
    mine = [slot for slot in slots.order if slots.serves(slot, role)]
    if not mine:
        return f"the allocation has no slots for {role}"
    bad = sorted({slot.node for slot in mine if slot.node in slots.bad})
    used = sum(slot in slots.held and slot.node not in slots.bad for slot in mine)
    return f"all {len(mine)} slots for {role} are in use" if not bad else (
        f"no slot for {role} is left: {used} of {len(mine)} are in use, "
        + ", ".join(f"{node} is out ({slots.bad[node]})" for node in bad)
    )  # fmt: skip


def choose_node(slots: Slots, used: Iterable[str], worker: str) -> Node | None:
    """A node for something that takes no slot; `used` are the nodes of others like it.

    Another node than the last time if there is one, then the node with the fewest others.
    """
    allowed = [n for n in slots.nodes if Role.CS in slots.roles[n.part] and n.name not in slots.bad]
    if not allowed:
        return None
    count, last = Counter(used), slots.last.get(worker)
    return min(allowed, key=lambda n: (n.name == last, count[n.name], allowed.index(n)))


_WANTED: tuple[Use | None, ...] = (Use.WARM, Use.LOADING, None)
_WANTED_BY_EWS: tuple[Use | None, ...] = (Use.WARM, None, Use.LOADING)
_COLD: tuple[Use | None, ...] = (None, Use.LOADING, Use.WARM)


def _workers(slots: Slots) -> list[tuple[Slot, str]]:
    return [(slot, held.name) for slot, held in slots.held.items() if held.use is Use.WORKER]


def _reason(slot: Slot, holder: Holder | None, last: str | None) -> str:
    how = f"{holder.name} is {holder.use} there" if holder else "it is free"
    if last is None:
        return how
    where = f"the same node as before, {last}" if slot.node == last else f"not on {last} again"
    return f"{how}; {where}"
