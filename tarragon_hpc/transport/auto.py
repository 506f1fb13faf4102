"""Listeners and connectors as `transport.kind` says; `auto`: what fits each pair of processes."""

from __future__ import annotations

import importlib
import ipaddress
import logging
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tarragon_hpc.errors import ConfigError, ConnectFailed, ConnectRefused
from tarragon_hpc.transport.admission import Admission
from tarragon_hpc.transport.choice import AUTO, Side, choose, merge, take_apart
from tarragon_hpc.transport.interfaces import KEY as INTERFACE_KEY
from tarragon_hpc.transport.interfaces import boot_id
from tarragon_hpc.transport.rdma_ports import Port, choose_port, find_ports
from tarragon_hpc.transport.shm import ShmConnector, ShmListener
from tarragon_hpc.transport.tcp import TcpConnector, TcpListener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tarragon_hpc.config.schema import RdmaConfig, TransportConfig
    from tarragon_hpc.transport.base import (
        ClientChannel,
        Connector,
        Geometry,
        Listener,
        ServerChannel,
    )
    from tarragon_hpc.transport.bell import ProcessDoorbell

log = logging.getLogger(__name__)


def check(config: TransportConfig) -> None:
    """Raises ConfigError if this node does not have the transport that is asked for."""
    if config.kind == "rdma":
        _port(config.rdma)


def make_listener(
    config: TransportConfig,
    *,
    runtime_dir: str,
    host: str,
    worker: str,
    incarnation: int,
    secret: bytes,
    bell: ProcessDoorbell,
) -> Listener:
    """A server's front door, or several behind one address.

    host: address of this node for whoever is elsewhere; for the rest see `ShmListener`. Raises
    ConfigError if this node cannot have what is asked for.
    """
    who = (worker, incarnation, secret, bell)
    silent_loss_s = config.silent_loss_ms / 1000

    def open_one(kind: str) -> Listener:
        if kind == "shm":
            return ShmListener(runtime_dir, *who)
        try:
            if kind == "tcp":
                return TcpListener(host, *who, silent_loss_s=silent_loss_s)
            port = _port(config.rdma)
            from tarragon_hpc.transport.rdma import RdmaListener

            return RdmaListener(host, port, config.rdma, *who, silent_loss_s=silent_loss_s)
        except OSError as error:
            raise ConfigError(INTERFACE_KEY, f"cannot listen on {host}: {error}") from None

    if config.kind != AUTO:
        return open_one(config.kind)
    with ExitStack() as undo:
        listeners = []
        for kind in ("shm", "tcp"):
            listeners.append(open_one(kind))
            undo.callback(listeners[-1].close)
        # Whoever can reach a loopback address is on this node.
        if not ipaddress.ip_address(host).is_loopback:
            with _optional():
                listeners.append(open_one("rdma"))
        undo.pop_all()
    return AutoListener(listeners, worker, incarnation)


def make_connector(
    config: TransportConfig,
    *,
    worker: str,
    incarnation: int,
    secret: bytes,
    bell: ProcessDoorbell,
    linked: Callable[[str, int, str, str], None] = lambda *link: None,
) -> AutoConnector:
    """A client's way out.

    linked: told of every new channel, in the thread of its `connect`: peer, its incarnation, the
        transport, and why none better; see `choice.Choice`. Raises ConfigError as `make_listener`.
    """
    who = (worker, incarnation, secret, bell)
    silent_loss_s = config.silent_loss_ms / 1000
    ways: dict[str, Connector] = {}
    fabric: str | None = None

    def add_rdma() -> str:
        port = _port(config.rdma)
        from tarragon_hpc.transport.rdma import RdmaConnector

        ways["rdma"] = RdmaConnector(port, config.rdma, *who, silent_loss_s=silent_loss_s)
        return port.fabric

    if config.kind in (AUTO, "shm"):
        ways["shm"] = ShmConnector(*who)
    if config.kind in (AUTO, "tcp"):
        ways["tcp"] = TcpConnector(*who, silent_loss_s=silent_loss_s)
    if config.kind == "rdma":
        fabric = add_rdma()
    elif config.kind == AUTO:
        with _optional():
            fabric = add_rdma()
    return AutoConnector(ways, Side(frozenset(ways), boot_id(), fabric), linked)


class AutoListener:
    """See `base.Listener`. Owns listeners of several transports, of one worker.

    A client's newer incarnation cuts the older off whatever transport each has come by.
    """

    def __init__(self, listeners: Sequence[Listener], worker: str, incarnation: int) -> None:
        self._listeners = listeners
        self._server = (worker, incarnation)
        self._admission: Admission[ServerChannel] = Admission(worker, incarnation)

    def __repr__(self) -> str:
        return f"AutoListener({', '.join(map(repr, self._listeners))})"

    def address(self) -> dict[str, str]:
        return merge(boot_id(), [listener.address() for listener in self._listeners])

    def accepted(self) -> list[ServerChannel]:
        joined: list[ServerChannel] = []
        for listener in self._listeners:
            for channel in listener.accepted():
                client = (channel.peer, channel.peer_incarnation)
                if self._admission.refusal(*client, *self._server) is not None:
                    channel.close()
                    continue
                for older in self._admission.admit(channel):
                    older.close()
                joined.append(channel)
        return joined

    def close(self) -> None:
        """Stop accepting; channels live on, those not yet fetched by `accepted` are closed."""
        for listener in self._listeners:
            listener.close()


class AutoConnector:
    """See `base.Connector`. The best transport that both ends have; if it fails, the next.

    ways: connectors by transport; side: what this process can use
    """

    def __init__(
        self,
        ways: Mapping[str, Connector],
        side: Side,
        linked: Callable[[str, int, str, str], None],
    ) -> None:
        self._ways = ways
        self._side = side
        self._linked = linked

    def __repr__(self) -> str:
        return f"AutoConnector({', '.join(self._ways)})"

    def connect(
        self, peer: str, peer_incarnation: int, address: dict[str, str], geometry: Geometry
    ) -> ClientChannel:
        who = f"{peer}.{peer_incarnation}: "
        offer = take_apart(address)
        if offer is None:
            raise ConnectFailed(f"{who}{address} is not the address of a listener")
        failed: dict[str, str] = {}
        while True:
            choice = choose(self._side, offer.side, failed)
            if isinstance(choice, str):
                raise ConnectFailed(who + choice)
            way = self._ways[choice.kind]
            try:
                channel = way.connect(
                    peer, peer_incarnation, offer.addresses[choice.kind], geometry
                )
            except ConnectRefused:
                raise
            except ConnectFailed as error:
                failed[choice.kind] = str(error).removeprefix(who)
            else:
                self._linked(peer, peer_incarnation, *choice)
                return channel


@contextmanager
def _optional() -> Iterator[None]:
    """Do without what this node does not have."""
    try:
        yield
    except ConfigError as error:
        log.debug("not used: %s", error.problem)


def _port(settings: RdmaConfig) -> Port:
    """The RDMA port of this node. Raises ConfigError if it has none that can be used."""
    port: Port | str = choose_port(find_ports(), settings)
    if isinstance(port, Port):
        try:
            importlib.import_module("tarragon_hpc.transport.rdma")
        except ImportError as error:
            port = f"pyverbs cannot be imported: {error}"
    if isinstance(port, str):
        raise ConfigError("transport.kind", f"rdma: {port}")
    return port
