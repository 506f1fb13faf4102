"""Control messages that the head receives. From workers, and from the command line's clients."""

from __future__ import annotations

from typing import TypeAlias

from tarragon_hpc.wire.common import Message, TokenDelta


class Register(Message, frozen=True):
    """The first message of a worker: who it is and where its data plane listens."""

    worker: str
    incarnation: int
    pid: int
    host: str
    address: dict[str, str]


class Ready(Message, frozen=True):
    """The worker can serve (engine built, or assigned experts loaded). `detail` is for `status`."""

    worker: str
    incarnation: int
    detail: dict[str, str | int | float | list[int]]


class TableApplied(Message, frozen=True):
    """An AW routes by the table of this epoch from now on; all its peers are connected."""

    worker: str
    incarnation: int
    epoch: int


class Heartbeat(Message, frozen=True):
    """The worker's control loop is alive; `stats` are counters and gauges for `status`."""

    worker: str
    incarnation: int
    stats: dict[str, float]


class Tokens(Message, frozen=True):
    """What one engine step produced."""

    worker: str
    incarnation: int
    items: list[TokenDelta]


class Refused(Message, frozen=True):
    """An AW refuses a sequence that can never run there (a mistake in the request)."""

    worker: str
    incarnation: int
    request: str
    message: str
    param: str | None = None


class Failed(Message, frozen=True):
    """An AW lost sequences through no fault of theirs; the reason names the peer at fault."""

    worker: str
    incarnation: int
    requests: list[str]
    reason: str


class Suspect(Message, frozen=True):
    """A worker reports that a peer looks dead, stopped or slow from where it stands."""

    worker: str
    incarnation: int
    peer: str
    peer_incarnation: int
    reason: str


class Stopping(Message, frozen=True):
    """The worker is about to exit in good order; nothing is owed any more."""

    worker: str
    incarnation: int
    reason: str


class StatusQuery(Message, frozen=True):
    """`tarragon status`: answered with `StatusReply`."""


class StopRun(Message, frozen=True):
    """`tarragon stop`: drain for at most `drain_s` seconds, then end the run."""

    drain_s: float


ToHead: TypeAlias = (
    Register
    | Ready
    | TableApplied
    | Heartbeat
    | Tokens
    | Refused
    | Failed
    | Suspect
    | Stopping
    | StatusQuery
    | StopRun
)
