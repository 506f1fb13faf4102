"""Control messages that a worker receives. All come from the head."""

from __future__ import annotations

from typing import TypeAlias

from tarragon_hpc.wire.common import Message, Peer, SamplingSpec


class Welcome(Message, frozen=True):
    """Answer to Register: the worker belongs to the run. `experts` is set for EWs: load these."""

    epoch: int
    experts: list[int] | None = None
    shadows: list[int] | None = None


class Table(Message, frozen=True):
    """The expert routing table (ERT) of an epoch, and how to reach the EWs in it.

    `candidates[e]` lists the EWs that hold expert e, primary first, then shadows.
    """

    epoch: int
    candidates: list[list[str]]
    peers: list[Peer]


class Load(Message, frozen=True):
    """Load these experts too, beside serving; answered with `Holding`."""

    experts: list[int]


class Unload(Message, frozen=True):
    """Drop these experts: no table in use names this EW for them. Answered with `Holding`."""

    experts: list[int]


class Submit(Message, frozen=True):
    """Run one sequence. `request` is unique in the run and names it in every answer.

    `attempt` counts the AWs that it was given to, this one included; answers carry it. `tokens`:
    what it has produced already, elsewhere; it goes on after them, as if nothing had happened.
    """

    request: str
    prompt: list[int]
    sampling: SamplingSpec
    attempt: int = 1
    tokens: list[int] = []


class Abort(Message, frozen=True):
    """Forget these sequences; nothing more is sent for them. Unknown ids are ignored.

    `moved`: another AW goes on with them, so what the checkpoint stores have of them must stay.
    """

    requests: list[str]
    moved: bool = False


class Stores(Message, frozen=True):
    """The checkpoint stores that serve now; whatever was said before is void."""

    peers: list[Peer]


class Save(Message, frozen=True):
    """Write what is kept of these requests into the run directory, for `seconds` at most, and let
    no attempt up to this one change it any more. Answered with `Saved`.
    """

    requests: list[str]
    attempt: int
    seconds: float


class Drain(Message, frozen=True):
    """Finish what runs, take nothing new, then send Stopping and exit."""

    reason: str


class Shutdown(Message, frozen=True):
    """Send Stopping and exit now; running sequences are dropped."""

    reason: str


class Fence(Message, frozen=True):
    """The head has given this incarnation up: exit at once, without another byte to anyone."""

    reason: str


class Alive(Message, frozen=True):
    """The head's sign of life, for workers that may look for another one. The link hears it."""


ToWorker: TypeAlias = (
    Welcome | Table | Stores | Load | Unload | Submit | Abort | Save | Drain | Shutdown | Fence
)
