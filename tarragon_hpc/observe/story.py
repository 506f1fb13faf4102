"""The story of one failure: when it reached which phase, and what it did to requests.

It is about one incarnation of a worker. It begins with a fault (a line "chaos: …") or with the
first evidence, whatever comes first, and is over when the worker is trusted again or its successor
is in use. Seconds are counted from the fault, or from the detection if nobody told of a fault.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

PHASES = (
    "detected", "rerouted", "answered", "moved", "resumed", "resumed_last", "fenced", "table",
    "told", "started", "ready", "restored", "back",
)  # fmt: skip
"""What may happen in a failure: noticed by somebody; an EW's rows went elsewhere; the first of them
was answered; an AW's requests were given to others; the first of them, and the last, went on there;
the process was killed for sure; a new table was published; the AWs were told to use other stores; a
successor was started; it was ready; a table names it (AW: it routes, CS: AWs use it); or the worker
itself was trusted again."""


class Passed(NamedTuple):
    """A phase that a failure has reached; seconds since it was detected.

    For "detected" itself: since the fault. "rerouted" and "answered" come once per AW, counted from
    when that AW noticed; "resumed" once per request.
    """

    phase: str
    seconds: float


@dataclass(slots=True)
class Mask:
    """How one AW got around the failure; times of the head's clock."""

    how: str
    by: str
    pairs: int
    at: dict[str, float]


@dataclass(slots=True)
class Moved:
    """What became of an AW's requests: how many were given to others, how many of them found none
    at once, how many have got a new token since. Of those: tokens whose KV came from a checkpoint
    store and from the other AW's own cache, tokens that were computed anew, bytes that were read.
    """

    requests: int = 0
    waiting: int = 0
    resumed: int = 0
    restored: int = 0
    cached: int = 0
    computed: int = 0
    nbytes: int = 0


@dataclass(slots=True)
class Story:
    """One failure. `at`: phase → the head's monotonic clock, for phases that were reached."""

    worker: str
    incarnation: int
    began: float
    """Wall clock of the first line."""
    fault: str | None = None
    injected: float | None = None
    lasting: bool = False
    """Something but a kill, that nobody has ended yet."""
    how: str = ""
    by: str = ""
    at: dict[str, float] = field(default_factory=dict)
    masks: list[Mask] = field(default_factory=list)
    moved: Moved = field(default_factory=Moved)

    @property
    def over(self) -> bool:
        """Nothing more is to be expected."""
        return "restored" in self.at or ("back" in self.at and not self.lasting)

    @property
    def settled(self) -> bool:
        """Over, or such that nothing need come: what was done to the worker has ended unnoticed."""
        if self.fault == "kill" or self.lasting or "detected" in self.at:
            return self.over
        return True

    def since(self) -> float | None:
        """The moment that seconds are counted from."""
        return self.injected if self.injected is not None else self.at.get("detected")

    def describe(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        start = self.since()
        zero = 0.0 if start is None else start
        return {
            "worker": self.worker,
            "incarnation": self.incarnation,
            "time": self.began,
            "fault": self.fault,
            "how": self.how,
            "by": self.by,
            "seconds": {p: round(self.at[p] - zero, 6) for p in PHASES if p in self.at},
            "masked_by": [
                {"by": m.by, "how": m.how, "pairs": m.pairs}
                | {f"{phase}_s": round(at - zero, 6) for phase, at in m.at.items()}
                for m in self.masks
            ],
            "moved": asdict(self.moved),
            "over": self.over,
        }
