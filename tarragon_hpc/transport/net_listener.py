"""A front door on a TCP port, for every transport whose clients join by `net_join.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.errors import ConnectFailed
from tarragon_hpc.transport import net
from tarragon_hpc.transport.admission import geometry_refusal
from tarragon_hpc.transport.monitor import Monitor
from tarragon_hpc.transport.net_join import Answer, Join, Session
from tarragon_hpc.transport.reception import Reception

if TYPE_CHECKING:
    import socket

    from tarragon_hpc.transport.base import ServerChannel
    from tarragon_hpc.transport.bell import ProcessDoorbell


class NetListener:
    """See `base.Listener`. A transport says what a join is answered with (`_serve`).

    host: numeric address of this node at which clients reach it
    bell: the server's doorbell
    silent_loss_s: a client that is silent for so long is lost
    max_channel_bytes: largest memory of one channel, both rings
    """

    kind: str

    def __init__(
        self,
        host: str,
        worker: str,
        incarnation: int,
        secret: bytes,
        bell: ProcessDoorbell,
        *,
        silent_loss_s: float = 3.0,
        max_channel_bytes: int = 8 << 30,
    ) -> None:
        """Raises OSError if the host is none of this node's."""
        self.worker = worker
        self.incarnation = incarnation
        self._secret = secret
        self._bell = bell
        self._silent_loss_s = silent_loss_s
        self._max_bytes = max_channel_bytes
        self._monitor = Monitor(f"{self.kind}-{worker}")
        sock = net.listen(host)
        self._address = {"kind": self.kind, "host": host, "port": str(sock.getsockname()[1])}
        self._reception = Reception(sock, worker, incarnation, bell, self._monitor, self._join)

    def __repr__(self) -> str:
        state = "closed" if self._reception.closed else "open"
        return f"{type(self).__name__}({self.worker}.{self.incarnation}, {state})"

    def address(self) -> dict[str, str]:
        return dict(self._address)

    def accepted(self) -> list[ServerChannel]:
        return self._reception.accepted()

    def close(self) -> None:
        """See `Reception.close`."""
        self._reception.close()

    def _join(self, sock: socket.socket, deadline: float) -> None:
        """One connection, in a thread of its own."""
        session = Session.hear(sock, self._secret, deadline)
        join = session.joining(deadline)
        try:
            self._serve(sock, session, join, deadline)
        except ConnectFailed as refusal:
            session.reply(Answer(str(refusal)), deadline)
            raise

    def _serve(self, sock: socket.socket, session: Session, join: Join, deadline: float) -> None:
        """Answer a join. Raises ConnectFailed if it is refused, and what `Reception` bears."""
        raise NotImplementedError

    def _check(self, join: Join) -> None:
        """Raises ConnectFailed if a channel like this cannot be had."""
        refusal = (
            (None if join.kind == self.kind else f"this is no listener for {join.kind}")
            or self._reception.refusal(
                join.worker, join.incarnation, join.peer, join.peer_incarnation
            )
            or geometry_refusal(join.geometry, self._max_bytes)
        )
        if refusal is not None:
            raise ConnectFailed(refusal)
