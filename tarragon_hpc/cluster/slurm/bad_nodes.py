"""Which nodes get no worker any more, and why. Pure; a `BadNodes` is immutable.

A node is bad once Slurm says so, once something could not be started there, or once it lost
too many workers, and clearly more than any other node did: what kills workers wherever they are
(a request, a bug) is no fault of a node, and nodes are few.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

_CLEARLY = 2
_REMEMBERED = 4096


class Death(NamedTuple):
    """A worker ended on a node without having been asked to."""

    at: float
    node: str


@dataclass(frozen=True, slots=True)
class BadNodes:
    """limit: deaths on one node within window_s. reasons: why a node is bad."""

    limit: int
    window_s: float
    reasons: Mapping[str, str] = field(default_factory=dict)
    deaths: tuple[Death, ...] = ()

    def blame(self, node: str, why: str) -> BadNodes:
        """With a node that is bad from now on; the first reason is kept."""
        if not node or node in self.reasons:
            return self
        return replace(self, reasons={**self.reasons, node: why})

    def died(self, node: str, at: float) -> BadNodes:
        """After one more death, which may be the one too many."""
        recent = [death for death in self.deaths if at - death.at <= self.window_s]
        deaths = (*recent, Death(at, node))[-_REMEMBERED:]
        after = replace(self, deaths=deaths)
        count = Counter(death.node for death in deaths)
        most = max((n for other, n in count.items() if other != node), default=0)
        if count[node] < self.limit or count[node] < _CLEARLY * most:
            return after
        took = at - min(death.at for death in deaths if death.node == node)
        return after.blame(node, f"{count[node]} workers died there within {took:.0f} s")


def recalled(timeline: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The nodes that earlier heads of the same job have avoided, and why.

    Those of an earlier job are forgiven: Slurm has given the run its nodes anew.
    """
    avoided: dict[str, str] = {}
    for line in timeline:
        match line.get("event"):
            case "node avoided":
                avoided.setdefault(
                    str(line["node"]), f"{line['reason']} (as an earlier head found)"
                )
            case "handover began":
                avoided.clear()
    return avoided
