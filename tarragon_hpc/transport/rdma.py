"""RDMA transport: one-sided writes into the peer's rings over reliable connections.

Both ends have both rings in their own memory, registered once: what is published in one end's copy
is written to the other's (`rdma_link.py`), where the doorbell's waiter sees it. They meet over TCP
(`net_join.py`), and are bound together by it too (`rdma_tie.py`). Rings are host memory, into which
attention workers copy their rows on GPUs as on CPUs; writing from GPU memory itself is not done.

Importing it raises ImportError where there is no pyverbs.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tarragon_hpc import native
from tarragon_hpc.errors import AuthError, ConnectFailed, FrameError
from tarragon_hpc.transport import memory, net, rdma_offer
from tarragon_hpc.transport.admission import geometry_refusal
from tarragon_hpc.transport.dial import failure
from tarragon_hpc.transport.monitor import Monitor
from tarragon_hpc.transport.net_join import Answer, Join, Session
from tarragon_hpc.transport.net_listener import NetListener
from tarragon_hpc.transport.rdma_device import open_port
from tarragon_hpc.transport.rdma_link import RdmaLink
from tarragon_hpc.transport.rdma_tie import RdmaTie
from tarragon_hpc.transport.reception import HANDSHAKE_S
from tarragon_hpc.transport.slot_channel import SlotClient, SlotServer

if TYPE_CHECKING:
    import socket

    from tarragon_hpc.config.schema import RdmaConfig
    from tarragon_hpc.transport.base import Geometry
    from tarragon_hpc.transport.bell import ProcessDoorbell
    from tarragon_hpc.transport.rdma_device import OpenPort
    from tarragon_hpc.transport.rdma_ports import Port

KIND = "rdma"
# Long enough for replies on their way at a close; a peer that takes longer will ask again.
_DRAIN_S = 0.1


def _make_link(
    port: OpenPort,
    settings: RdmaConfig,
    worker: str,
    g: Geometry,
    silent_loss_s: float,
    *,
    server: bool,
) -> tuple[memoryview, memoryview, RdmaLink]:
    """This end's rings, of the requests and of the replies, and the link that they go through."""
    requests, replies = memory.own_rings(worker, g)
    if server:
        out, out_bytes, inbound = replies, g.reply_bytes, requests
    else:
        out, out_bytes, inbound = requests, g.request_bytes, replies
    link = RdmaLink(port, settings, out, g.slots, out_bytes, inbound, silent_loss_s)
    return requests, replies, link


class RdmaListener(NetListener):
    """See `NetListener`.

    host: for the handshakes only; port: of this node, for everything else
    bell: will look at the rings of all clients
    """

    kind = KIND

    def __init__(
        self,
        host: str,
        port: Port,
        settings: RdmaConfig,
        worker: str,
        incarnation: int,
        secret: bytes,
        bell: ProcessDoorbell,
        *,
        silent_loss_s: float = 3.0,
        max_channel_bytes: int = 8 << 30,
    ) -> None:
        """Raises ConfigError if the port cannot be used, OSError if the host cannot."""
        memory.require_native()
        self._port = open_port(port)
        self._settings = settings
        super().__init__(
            host,
            worker,
            incarnation,
            secret,
            bell,
            silent_loss_s=silent_loss_s,
            max_channel_bytes=max_channel_bytes,
        )

    def address(self) -> dict[str, str]:
        return super().address() | {"fabric": self._port.fabric}

    def _serve(self, sock: socket.socket, session: Session, join: Join, deadline: float) -> None:
        self._check(join)
        g = join.geometry
        peer = rdma_offer.decode(
            join.offer, self._port.fabric, native.module.ring_bytes(g.slots, g.reply_bytes)
        )
        requests, replies, link = _make_link(
            self._port, self._settings, self.worker, g, self._silent_loss_s, server=True
        )
        try:
            link.connect(peer)
            channel = SlotServer(
                KIND,
                join.worker,
                join.incarnation,
                g,
                self._bell,
                requests=requests,
                replies=replies,
                notifier=native.module.CallNotifier(link.posted),
            )

            def start() -> None:
                net.silent_loss_after(sock, self._silent_loss_s)
                session.reply(Answer(offer=rdma_offer.encode(link.offer())), deadline)
                channel.bind(
                    RdmaTie(
                        channel,
                        self._bell,
                        link,
                        sock,
                        self._monitor,
                        requests,
                        g.request_bytes,
                        drain_s=_DRAIN_S,
                    )
                )

            self._reception.admit(channel, (join.peer, join.peer_incarnation), start)
        except BaseException:
            link.close()
            raise


class RdmaConnector:
    """See `base.Connector`.

    port: of this node; bell: the client's doorbell, which will look at the rings of all servers
    silent_loss_s: a server that is silent for so long is lost
    timeout_s: longest time one `connect` may take
    """

    def __init__(
        self,
        port: Port,
        settings: RdmaConfig,
        worker: str,
        incarnation: int,
        secret: bytes,
        bell: ProcessDoorbell,
        *,
        silent_loss_s: float = 3.0,
        timeout_s: float = HANDSHAKE_S,
    ) -> None:
        """Raises ConfigError if the port cannot be used."""
        memory.require_native()
        self._port = open_port(port)
        self._settings = settings
        self._worker = worker
        self._incarnation = incarnation
        self._secret = secret
        self._bell = bell
        self._silent_loss_s = silent_loss_s
        self._timeout_s = timeout_s
        self._monitor = Monitor(f"rdma-{worker}")

    def connect(
        self, peer: str, peer_incarnation: int, address: dict[str, str], geometry: Geometry
    ) -> SlotClient:
        if address.get("kind") != KIND:
            raise ConnectFailed(f"{peer}: {address} is not the address of an RDMA listener")
        host, port = net.host_and_port(peer, address)
        fabric = self._port.fabric
        deadline = time.monotonic() + self._timeout_s
        refusal = geometry_refusal(geometry, 1 << 62)
        if address.get("fabric") != fabric:
            refusal = f"it is on the fabric {address.get('fabric')}, and this node on {fabric}"
        if refusal is not None:
            raise ConnectFailed(f"{peer}: {refusal}")
        try:
            sock = net.connect(host, port, deadline)
            try:
                return self._join(sock, peer, peer_incarnation, geometry, deadline)
            except BaseException:
                sock.close()
                raise
        except (OSError, FrameError, AuthError, ConnectFailed) as error:
            raise failure(peer, peer_incarnation, error) from None

    def _join(
        self, sock: socket.socket, peer: str, peer_incarnation: int, g: Geometry, deadline: float
    ) -> SlotClient:
        session = Session.ask(sock, self._secret, deadline)
        requests, replies, link = _make_link(
            self._port, self._settings, self._worker, g, self._silent_loss_s, server=False
        )
        try:
            join = Join(
                KIND,
                self._worker,
                self._incarnation,
                peer,
                peer_incarnation,
                g.slots,
                g.request_bytes,
                g.reply_bytes,
                rdma_offer.encode(link.offer()),
            )
            answer = session.join(join, deadline)
            nbytes = native.module.ring_bytes(g.slots, g.request_bytes)
            link.connect(rdma_offer.decode(answer.offer, self._port.fabric, nbytes))
            net.silent_loss_after(sock, self._silent_loss_s)
            channel = SlotClient(
                KIND,
                peer,
                peer_incarnation,
                g,
                self._bell,
                requests=requests,
                replies=replies,
                notifier=native.module.CallNotifier(link.posted),
            )
            channel.bind(
                RdmaTie(
                    channel,
                    self._bell,
                    link,
                    sock,
                    self._monitor,
                    replies,
                    g.reply_bytes,
                    drain_s=0.0,
                )
            )
        except BaseException:
            link.close()
            raise
        return channel
