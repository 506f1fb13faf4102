"""TCP transport: for processes on different nodes without RDMA hardware.

Each end has both rings in its own memory; native code (kernels/tcp_link.hpp) sends what is posted
straight from a slot of one end and receives it straight into the same slot of the other. Two
connections per channel: data, and control for signs of life, which no amount of data holds up.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from tarragon_hpc import native
from tarragon_hpc.errors import AuthError, ConnectFailed, FrameError
from tarragon_hpc.transport import memory, net, tcp_pairing
from tarragon_hpc.transport.admission import geometry_refusal
from tarragon_hpc.transport.net_join import Answer, Join, Session
from tarragon_hpc.transport.net_listener import NetListener
from tarragon_hpc.transport.reception import HANDSHAKE_S
from tarragon_hpc.transport.slot_channel import SlotClient, SlotServer

if TYPE_CHECKING:
    from tarragon_hpc._native import TcpLink
    from tarragon_hpc.transport.base import Geometry
    from tarragon_hpc.transport.bell import ProcessDoorbell

KIND = "tcp"


class TcpListener(NetListener):
    """See `NetListener`. bell: rung by all clients."""

    kind = KIND

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
        self._pairing = tcp_pairing.Pairing()
        super().__init__(
            host,
            worker,
            incarnation,
            secret,
            bell,
            silent_loss_s=silent_loss_s,
            max_channel_bytes=max_channel_bytes,
        )

    def _serve(self, sock: socket.socket, session: Session, join: Join, deadline: float) -> None:
        if join.kind == tcp_pairing.DATA:
            self._pairing.second(join, sock, session, self._reception.keep)
            return
        self._check(join)
        with self._pairing.first(join) as first:
            session.reply(Answer(offer={tcp_pairing.TOKEN: first.token}), deadline)
            self._reception.step_aside()
            data, second = first.wait(sock, deadline)
            try:
                self._admit(join, data, sock, second, deadline)
            except ConnectFailed as refused:
                second.reply(Answer(str(refused)), deadline)
                raise FrameError(str(refused)) from None  # it has been told

    def _admit(
        self,
        join: Join,
        data: socket.socket,
        control: socket.socket,
        session: Session,
        deadline: float,
    ) -> None:
        g = join.geometry
        requests, replies = memory.own_rings(join.worker, g)
        link = native.module.TcpLink(
            replies, requests, g.slots, g.reply_bytes, g.request_bytes, True, self._silent_loss_s
        )
        channel = SlotServer(
            KIND,
            join.worker,
            join.incarnation,
            g,
            self._bell,
            requests=requests,
            replies=replies,
            notifier=link,
        )

        def start() -> None:
            session.reply(Answer(), deadline)
            _start(channel, link, data, control, self._bell, self._silent_loss_s)

        self._reception.admit(channel, (join.peer, join.peer_incarnation), start)


class TcpConnector:
    """See `base.Connector`.

    bell: the client's doorbell, rung by all its servers
    silent_loss_s: a server that is silent for so long, although asked, is lost
    timeout_s: longest time one `connect` may take
    """

    def __init__(
        self,
        worker: str,
        incarnation: int,
        secret: bytes,
        bell: ProcessDoorbell,
        *,
        silent_loss_s: float = 3.0,
        timeout_s: float = HANDSHAKE_S,
    ) -> None:
        self._worker = worker
        self._incarnation = incarnation
        self._secret = secret
        self._bell = bell
        self._silent_loss_s = silent_loss_s
        self._timeout_s = timeout_s

    def connect(
        self, peer: str, peer_incarnation: int, address: dict[str, str], geometry: Geometry
    ) -> SlotClient:
        if address.get("kind") != KIND:
            raise ConnectFailed(f"{peer}: {address} is not the address of a tcp listener")
        where = net.host_and_port(peer, address)
        who = f"{peer}.{peer_incarnation}"
        refusal = geometry_refusal(geometry, 1 << 62)
        if refusal is not None:
            raise ConnectFailed(f"{who}: {refusal}")
        join = Join(
            tcp_pairing.CONTROL,
            self._worker,
            self._incarnation,
            peer,
            peer_incarnation,
            geometry.slots,
            geometry.request_bytes,
            geometry.reply_bytes,
        )
        try:
            return self._join(join, where)
        except ConnectFailed as error:
            raise type(error)(f"{who}: {error}") from None
        except TimeoutError:
            raise ConnectFailed(
                f"{who}: no answer from {where[0]}:{where[1]} within {self._timeout_s:g} s"
            ) from None
        except (OSError, FrameError, AuthError) as error:
            raise ConnectFailed(f"{who} at {where[0]}:{where[1]}: {error}") from None

    def _join(self, join: Join, where: tuple[str, int]) -> SlotClient:
        deadline = time.monotonic() + self._timeout_s
        with net.connect(*where, deadline) as control:
            answer = Session.ask(control, self._secret, deadline).join(join, deadline)
            second = tcp_pairing.second_join(join, answer.offer.get(tcp_pairing.TOKEN, ""))
            with net.connect(*where, deadline) as data:
                Session.ask(data, self._secret, deadline).join(second, deadline)
                return self._channel(join, data, control)

    def _channel(self, join: Join, data: socket.socket, control: socket.socket) -> SlotClient:
        g = join.geometry
        requests, replies = memory.own_rings(join.peer, g)
        link = native.module.TcpLink(
            requests, replies, g.slots, g.request_bytes, g.reply_bytes, False, self._silent_loss_s
        )
        channel = SlotClient(
            KIND,
            join.peer,
            join.peer_incarnation,
            g,
            self._bell,
            requests=requests,
            replies=replies,
            notifier=link,
        )
        _start(channel, link, data, control, self._bell, self._silent_loss_s)
        return channel


def _start(
    channel: SlotClient | SlotServer,
    link: TcpLink,
    data: socket.socket,
    control: socket.socket,
    bell: ProcessDoorbell,
    silent_loss_s: float,
) -> None:
    """Takes the sockets away from their objects. Raises OSError."""
    for sock in (data, control):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        net.silent_loss_after(sock, silent_loss_s)
    channel.bind(link)
    link.start(data.detach(), control.detach(), channel.native, bell.native)
