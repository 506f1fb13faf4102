"""Which transport a listener and a connector made by `transport.kind` come together by."""

from __future__ import annotations

import contextlib
import time

import pytest

from tarragon_hpc.config.schema import TransportConfig
from tarragon_hpc.errors import ConfigError, ConnectFailed, ConnectRefused
from tarragon_hpc.transport import auto
from tarragon_hpc.transport.base import Geometry
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.transport.rdma_ports import find_ports

pytestmark = pytest.mark.native

SECRET = b"s" * 32
GEOMETRY = Geometry(2, 64, 64)


class World:
    """A listener, and connectors to it; `linked` is what the connectors told."""

    def __init__(self, root: str, stack: contextlib.ExitStack) -> None:
        self.root, self.stack = root, stack
        self.linked: list[tuple[object, ...]] = []
        self.bells = [self.closing(ProcessDoorbell()) for _ in range(2)]

    def closing(self, made):
        self.stack.callback(made.close)
        return made

    def listener(self, kind="auto", **how):
        return self.closing(
            auto.make_listener(
                TransportConfig(kind=kind),
                **{"runtime_dir": self.root, "host": "127.0.0.1", "worker": "ew0"} | how,
                incarnation=1,
                secret=SECRET,
                bell=self.bells[0],
            )
        )

    def connect(self, address, kind="auto", worker="aw0", incarnation=1, secret=SECRET, server=1):
        connector = auto.make_connector(
            TransportConfig(kind=kind),
            worker=worker,
            incarnation=incarnation,
            secret=secret,
            bell=self.bells[1],
            linked=lambda *link: self.linked.append(link),
        )
        return self.closing(connector.connect("ew0", server, address, GEOMETRY))

    def accepted(self, listener, count=1):
        joined, until = [], time.monotonic() + 10
        while len(joined) < count:
            assert time.monotonic() < until
            seen = self.bells[0].value()
            joined += map(self.closing, listener.accepted())
            if len(joined) < count:
                self.bells[0].wait(seen, 1)
        return joined

    def talk(self, client, server) -> None:
        """There and back."""
        slot = client.acquire()
        client.request(slot)[:5] = b"hello"
        client.post(slot, 5)
        request = until(self.bells[0], server.poll)
        assert bytes(request.data) == b"hello"
        server.reply(slot)[:3] = b"yes"
        server.send(slot, 3)
        assert bytes(until(self.bells[1], lambda: client.reply(slot))) == b"yes"


def until(bell, condition):
    """What the condition gives once it gives something."""
    end = time.monotonic() + 10
    while True:
        seen = bell.value()
        if (result := condition()) is not None:
            return result
        assert time.monotonic() < end
        bell.wait(seen, 1)


def elsewhere(address: dict[str, str]) -> dict[str, str]:
    """The same listener, as if it were on another node."""
    return address | {"node": "another"}


@pytest.fixture
def world(tmp_path):
    with contextlib.ExitStack() as stack:
        yield World(str(tmp_path / "run"), stack)


def test_one_node_shares_memory(world):
    listener = world.listener()
    client = world.connect(listener.address())
    (server,) = world.accepted(listener)
    assert (client.kind, server.kind) == ("shm", "shm")
    assert world.linked == [("ew0", 1, "shm", "")]
    world.talk(client, server)


def test_two_nodes_use_tcp(world):
    listener = world.listener()
    client = world.connect(elsewhere(listener.address()))
    (server,) = world.accepted(listener)
    assert (client.kind, server.kind) == ("tcp", "tcp")
    assert world.linked == [("ew0", 1, "tcp", "")]
    world.talk(client, server)


def test_a_socket_out_of_reach_is_no_obstacle_and_told(world, tmp_path):
    """As in two containers of one node: the same boot, another filesystem."""
    listener = world.listener()
    address = listener.address() | {"shm.path": str(tmp_path / "elsewhere" / "ew0.1.sock")}
    client = world.connect(address)
    (server,) = world.accepted(listener)
    ((_, _, kind, reason),) = world.linked
    assert (client.kind, kind) == ("tcp", "tcp")
    assert reason.startswith("shm: [Errno 2] No such file or directory")
    world.talk(client, server)


def test_another_fabric_is_left_alone(world):
    offers = {"rdma.host": "127.0.0.1", "rdma.port": "1", "rdma.fabric": "ib:fe80000000000000"}
    listener = world.listener()
    client = world.connect(elsewhere(listener.address()) | offers)
    assert client.kind == "tcp"
    assert world.linked == [("ew0", 1, "tcp", "rdma: only there")]


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ({"server": 2}, r"ew0\.2: this is ew0\.1, not ew0\.2"),
        ({"secret": b"x" * 32}, r"ew0\.1: "),
    ],
)
def test_a_refusal_is_one_whatever_the_transport(world, how, problem):
    listener = world.listener()
    for address in (listener.address(), elsewhere(listener.address())):
        with pytest.raises(ConnectFailed, match=problem):
            world.connect(address, **how)
    assert world.linked == []
    assert listener.accepted() == []


def test_no_second_way_is_tried_after_a_refusal(world):
    listener = world.listener()
    address = listener.address() | {"tcp.port": "1"}
    with pytest.raises(ConnectRefused, match=r"^ew0\.2: this is ew0\.1, not ew0\.2$"):
        world.connect(address, server=2)


def test_a_peer_that_is_gone_is_told_once_for_each_way(world):
    listener = world.listener()
    address = listener.address()
    listener.close()
    with pytest.raises(ConnectFailed, match=r"^ew0\.1: shm: .*; tcp: .*$"):
        world.connect(address)


def test_a_newer_client_cuts_the_older_off_whatever_way_each_came(world):
    listener = world.listener()
    address = listener.address()
    older = world.connect(address)
    assert older.kind == "shm"
    world.accepted(listener)
    newer = world.connect(elsewhere(address), incarnation=2)
    assert newer.kind == "tcp"
    (server,) = world.accepted(listener)
    until(world.bells[1], lambda: older.lost)
    world.talk(newer, server)
    # An older one is admitted by a transport that has not seen the newer, and closed at once.
    stale = world.connect(address)
    until(world.bells[1], lambda: (listener.accepted(), stale.lost)[1])
    assert newer.lost is None
    other = world.connect(address, worker="aw1")
    world.talk(other, *world.accepted(listener))


@pytest.mark.parametrize("kind", ["shm", "tcp"])
def test_one_kind_by_configuration_is_the_only_one(world, kind):
    listener = world.listener(kind)
    assert listener.address()["kind"] == kind
    client = world.connect(listener.address(), kind)
    assert client.kind == kind
    assert world.linked == [("ew0", 1, kind, "")]
    world.talk(client, *world.accepted(listener))
    other = {"shm": "tcp", "tcp": "shm"}[kind]
    with pytest.raises(ConnectFailed, match="only here"):
        world.connect(listener.address(), other)


def test_by_default_nothing_listens_to_the_network(world):
    address = world.listener().address()
    assert address["tcp.host"] == "127.0.0.1"
    assert not any(key.startswith("rdma") for key in address)


def test_a_host_that_is_not_here_is_named(world):
    with pytest.raises(ConfigError, match=r"^transport\.interface: cannot listen on 192\.0\.2\.77"):
        world.listener("tcp", host="192.0.2.77")
    with pytest.raises(ConfigError, match=r"^transport\.interface: cannot listen on 192\.0\.2\.77"):
        world.listener(host="192.0.2.77", worker="ew7")


@pytest.mark.skipif(bool(find_ports()), reason="there is an RDMA device here")
def test_rdma_without_a_device_is_a_mistake_of_the_configuration(world):
    for make in (
        lambda: world.listener("rdma"),
        lambda: world.connect({"kind": "rdma"}, "rdma"),
        lambda: auto.check(TransportConfig(kind="rdma")),
    ):
        with pytest.raises(ConfigError, match=r"^transport\.kind: rdma: no RDMA device"):
            make()
    auto.check(TransportConfig())
