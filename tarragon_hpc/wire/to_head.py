"""Control messages that the head receives. From workers, and from the command line's clients."""

from __future__ import annotations

from typing import TypeAlias

from tarragon_hpc.wire.common import Message, Resumption, Standing, TokenDelta


class Register(Message, frozen=True):
    """The first message of a worker: who it is and where its data plane listens.

    `standing`: it had registered with an earlier head, and has served on without one since. Under
    Slurm: step, as `job.step`, and node, as Slurm calls it.
    """

    worker: str
    incarnation: int
    pid: int
    host: str
    address: dict[str, str]
    step: str = ""
    node: str = ""
    standing: Standing | None = None


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
    """An AW lost sequences through no fault of theirs; the reason names the peer at fault.

    `again`: another AW, or the same one later, may well go on with them.
    """

    worker: str
    incarnation: int
    requests: list[str]
    reason: str
    again: bool = True


class Resumed(Message, frozen=True):
    """An AW goes on with a sequence that another one had begun; sent with its first new token."""

    worker: str
    incarnation: int
    item: Resumption


class Suspect(Message, frozen=True):
    """A worker reports that a peer looks dead, stopped or slow from where it stands."""

    worker: str
    incarnation: int
    peer: str
    peer_incarnation: int
    reason: str


class Cleared(Message, frozen=True):
    """An AW sends work again to a peer that it had suspected: it has answered."""

    worker: str
    incarnation: int
    peer: str
    peer_incarnation: int


class Linked(Message, frozen=True):
    """An AW has connected to a peer. `kind`: the transport; `reason`: why none that is better, if
    that is not a matter of course.
    """

    worker: str
    incarnation: int
    peer: str
    peer_incarnation: int
    kind: str
    reason: str = ""


class Masked(Message, frozen=True):
    """An AW has masked the failure of an EW on its own: its rows went to other EWs.

    `how` it was noticed: lost (exit, end of connection, broken protocol), silent (no answer to
    probes), overdue (no progress). Seconds are counted back from the moment this is sent, so that
    clocks need not agree. `pairs`: (row, expert) pairs sent again.
    """

    worker: str
    incarnation: int
    peer: str
    peer_incarnation: int
    how: str
    detected_ago_s: float
    rerouted_ago_s: float
    answered_ago_s: float
    pairs: int


class Holding(Message, frozen=True):
    """All experts that an EW can serve, after a Load or Unload; `error` if that failed."""

    worker: str
    incarnation: int
    experts: list[int]
    error: str | None = None


class Notice(Message, frozen=True):
    """Something outside the run wants the worker to leave, and may kill it soon; it serves on."""

    worker: str
    incarnation: int
    reason: str


class Saved(Message, frozen=True):
    """Answer to Save. tokens: positions of so many requests that are in the file, of `nbytes`.
    problem: why there is not more, or nothing.
    """

    worker: str
    incarnation: int
    requests: int
    tokens: int
    nbytes: int
    problem: str = ""


class Stopping(Message, frozen=True):
    """The worker is about to exit in good order; nothing is owed any more."""

    worker: str
    incarnation: int
    reason: str


class StatusQuery(Message, frozen=True):
    """`tarragon status`: answered with `StatusReply`."""


class StandBy(Message, frozen=True):
    """A standby head is there, and waits for the end of this one. Answered with `Done`."""

    pid: int
    host: str


class StopRun(Message, frozen=True):
    """`tarragon stop`: drain for at most `drain_s` seconds, then end the run."""

    drain_s: float


class ScaleRun(Message, frozen=True):
    """`tarragon scale`: how many workers of a role the run should have. Answered with Done (the
    change is under way) or Error (it is refused, and nothing was changed).
    """

    role: str
    count: int


class Note(Message, frozen=True):
    """For the timeline, from a client: what `tarragon chaos` did, say. Answered with Done."""

    event: str
    worker: str | None = None
    detail: dict[str, str | int | float] = {}


ToHead: TypeAlias = (
    Register
    | Ready
    | TableApplied
    | Heartbeat
    | Tokens
    | Refused
    | Failed
    | Resumed
    | Suspect
    | Cleared
    | Linked
    | Masked
    | Holding
    | Notice
    | Saved
    | Stopping
    | StatusQuery
    | StandBy
    | StopRun
    | ScaleRun
    | Note
)
