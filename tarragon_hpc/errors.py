"""Every error the package raises on purpose, and who handles it.

TarragonError
├── UserError              a mistake of the person at the keyboard: one line, exit status 2
│   ├── ConfigError            a key of the configuration; names the key, the value, what is allowed
│   └── ModelError             a checkpoint directory that cannot be served
├── RequestError           a mistake in one request: an OpenAI error object, the service goes on
├── Overloaded             a queue is full: HTTP 429 at the gateway
├── Unavailable            the service cannot take a request, or lost it: HTTP 503 at the gateway
│   └── HandingOver            … because another head is to go on with the run: come back later
├── TransportError         the data plane; handled by the REFE and the expert server
│   ├── ConnectFailed          a peer could not be reached or did not know the run's secret
│   │   └── ConnectRefused         it could, and does not take the connection
│   ├── PeerLost               a peer died or was cut off while something was owed (expected!)
│   ├── DeadlineExceeded       a peer is alive but did not answer in time
│   ├── DispatchRefused        a peer answered that it cannot compute what it was sent
│   └── ExpertUnavailable      no live worker holds a wanted expert
├── FrameError             bytes from a peer that are not a valid message; the connection is dropped
├── AuthError              a peer without the run's secret; the connection is dropped
└── ClusterError           workers could not be started or supervised: exit status 3
    ├── NoSlot                 the allocation has no room for a worker
    ├── RecordError            a file of the run directory that is no whole record of its kind
    └── Claimed                another process has this worker's incarnation: exit status 73

Anything that is not in this tree is a bug: it ends the process, and the supervisor reports it.
"""


class TarragonError(Exception):
    """Base of all errors raised on purpose."""

    exit_status = 1


class UserError(TarragonError):
    """A mistake of the user. The message is one line that says what is allowed instead."""

    exit_status = 2


class ConfigError(UserError):
    """A configuration key with a bad name or value."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem


class ModelError(UserError):
    """A checkpoint directory that cannot be served; the message names the path and the reason."""


class RequestError(TarragonError):
    """One request is invalid. `param` is the field of the request at fault, if there is one."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.status = status


class Overloaded(TarragonError):
    """A bounded queue is full; the caller should come back later."""


class Unavailable(TarragonError):
    """Nobody can run a request now, or whoever ran it was lost. No fault of the request."""


class HandingOver(Unavailable):
    """The head ends and another one goes on with the run: the client should come back."""


class TransportError(TarragonError):
    """The data plane."""


class ConnectFailed(TransportError):
    """A peer could not be reached, or the handshake failed."""


class ConnectRefused(ConnectFailed):
    """The peer is there and does not take the connection: another way to it leads no further."""


class PeerLost(TransportError):
    """A peer died or was cut off. An expected outcome, not a surprise."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"{peer} lost: {reason}")
        self.peer = peer
        self.reason = reason


class DeadlineExceeded(TransportError):
    """A peer that still seems alive did not answer in time."""

    def __init__(self, peer: str, seconds: float) -> None:
        super().__init__(f"{peer} did not answer within {seconds:.3f} s")
        self.peer = peer
        self.seconds = seconds


class DispatchRefused(TransportError):
    """A peer answered, but with a refusal, or with something that makes no sense."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"{peer} refused a dispatch: {reason}")
        self.peer = peer
        self.reason = reason


class ExpertUnavailable(TransportError):
    """Rows were routed to experts that no live worker holds; `reason` tells of their holders."""

    def __init__(self, experts: tuple[int, ...], reason: str) -> None:
        super().__init__(f"no live worker holds expert {', '.join(map(str, experts))} ({reason})")
        self.experts = experts
        self.reason = reason


class FrameError(TarragonError):
    """Bytes that are not a valid message."""


class AuthError(TarragonError):
    """A peer that does not know the run's secret."""


class ClusterError(TarragonError):
    """Workers could not be started or supervised."""

    exit_status = 3


class NoSlot(ClusterError):
    """No slot of the allocation is left for a worker."""


class RecordError(ClusterError):
    """A file of the run directory that is no whole record of its kind."""


class Claimed(ClusterError):
    """Another process has taken this incarnation of a worker; there must never be two."""

    exit_status = 73  # EX_CANTCREAT of sysexits.h
