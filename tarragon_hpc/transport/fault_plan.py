"""What is to go wrong with which message: a value, for `faulty.py` to act on.

    FaultPlan((Rule("ew0", "reply", 3, Drop()), Rule("ew1", "request", 1, Sever())))

Messages are counted per peer and direction from 1, over all channels to that peer: a rule strikes
once. The reply to the n-th request posted is the n-th reply, whenever it comes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Direction = Literal["request", "reply"]


@dataclass(frozen=True, slots=True)
class Drop:
    """The message is never seen; its slot stays owed."""


@dataclass(frozen=True, slots=True)
class Delay:
    """The message is seen so much later. Requests behind it wait, replies may overtake it."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reorder:
    """A reply is seen only once a later one of its channel was, at the latest after `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Corrupt:
    """One bit of the message is flipped; counted modulo its length."""

    bit: int


@dataclass(frozen=True, slots=True)
class Sever:
    """The connection ends instead."""


Action = Drop | Delay | Reorder | Corrupt | Sever


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to the nth message of a peer in a direction. Raises ValueError for an illegal
    one: requests are seen in order, so none is overtaken.
    """

    peer: str
    direction: Direction
    nth: int
    action: Action

    def __post_init__(self) -> None:
        if self.nth < 1:
            raise ValueError(f"nth is {self.nth}; messages are counted from 1")
        if self.direction == "request" and isinstance(self.action, Reorder):
            raise ValueError("requests of a channel are never reordered")


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Rules; of those for one message the first counts."""

    rules: tuple[Rule, ...] = ()

    def at(self, peer: str, direction: Direction, nth: int) -> Action | None:
        """What happens to a message, if anything."""
        for rule in self.rules:
            if (rule.peer, rule.direction, rule.nth) == (peer, direction, nth):
                return rule.action
        return None

    def of(self, direction: Direction) -> FaultPlan:
        """The rules about one direction."""
        return FaultPlan(tuple(r for r in self.rules if r.direction == direction))

    @classmethod
    def random(
        cls,
        seed: int,
        peers: Sequence[str],
        *,
        faults: int,
        messages: int,
        longest_s: float,
        bits: int,
        directions: Iterable[Direction] = ("request", "reply"),
    ) -> FaultPlan:
        """As many faults among the first `messages` of each peer and direction.

        longest_s: of delays; bits: how far into a message corruption reaches
        """
        rng = random.Random(seed)
        among = tuple(directions)
        rules = []
        for _ in range(faults):
            direction = rng.choice(among)
            actions: list[Action] = [
                Drop(),
                Delay(rng.uniform(0, longest_s)),
                Corrupt(rng.randrange(bits)),
                Sever(),
            ]
            if direction == "reply":
                actions.append(Reorder(rng.uniform(0, longest_s)))
            nth = rng.randint(1, messages)
            rules.append(Rule(rng.choice(peers), direction, nth, rng.choice(actions)))
        return cls(tuple(rules))
