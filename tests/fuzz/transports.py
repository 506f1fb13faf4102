"""What peers on other nodes say: their records, where they listen, their memory, their messages."""

from __future__ import annotations

import contextlib
import functools
import socket
import struct
import time
from types import SimpleNamespace

import msgspec

from tarragon_hpc import native
from tarragon_hpc.cluster import records
from tarragon_hpc.errors import ConnectFailed, RecordError
from tarragon_hpc.transport import choice, memory, net, rdma_offer
from tarragon_hpc.transport.base import Geometry
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.transport.slot_channel import SlotClient, SlotServer
from tests.fuzz.target import Family

family = Family()


def _records():
    address = {"kind": "tcp", "host": "10.0.0.1", "port": "5"}
    where = {"eth0": "10.0.0.1"}
    head = records.HeadRecord("r", 1, "h", "10.0.0.1", 5, "http://h", "/tmp/x", where, "n", 1, "b")
    worker = records.WorkerRecord("n", "aw", "aw0", 1, "h", "b", where, address, 7)
    return [records.encode(head), records.encode(worker)]


@family.add(_records, RecordError)
def record(data):
    """As the one kind or the other, whole or not, with a checksum of its own that is right."""
    for kind in (records.HeadRecord, records.WorkerRecord):
        _, _, body = data.partition(b"\n")
        line = b"tarragon-record 1 %s %d %s\n" % (
            kind.__struct_config__.tag.encode(), len(body), records._sum(body),
        )  # fmt: skip
        with contextlib.suppress(RecordError):
            records.encode(records.decode(line + body, kind))
    records.decode(data, records.HeadRecord)


def _offers():
    offer = rdma_offer.Offer("roce", "fe80::1", 0, 1024, 5, 6, 7, 8, 1 << 20, 9)
    return [msgspec.json.encode(rdma_offer.encode(offer))]


def _fields(data):
    return msgspec.json.decode(data, type=dict[str, str])


@family.add(_offers, ConnectFailed, msgspec.DecodeError, UnicodeDecodeError)
def offer_of_memory(data):
    offer = rdma_offer.decode(_fields(data), "roce", 4096)
    assert offer.ring % 64 == 0
    assert offer.ring + 4096 <= 1 << 63


def _addresses():
    tcp = {"kind": "tcp", "host": "10.0.0.1", "port": "5"}
    rdma = {"kind": "rdma", "host": "10.0.0.1", "port": "5", "fabric": "roce"}
    both = choice.merge("boot", [{"kind": "shm", "path": "/tmp/x"}, tcp, rdma])
    return [msgspec.json.encode(a) for a in (both, tcp)]


@family.add(_addresses, ConnectFailed, msgspec.DecodeError, UnicodeDecodeError)
def address_of_node(data):
    choice.take_apart(_fields(data))
    net.host_and_port("ew0", _fields(data))


SLOTS, REQUEST, REPLY = 2, 64, 96
_REQUEST, _REPLY = 0x51525454, 0x50525454
_WITHIN_S = 5.0


def _messages():
    """Behind a byte that says who hears it (odd: a server) and how much of it is for the control
    connection.
    """

    def message(kind, slot, sequence, body):
        return struct.pack("<IIQQ", kind, slot, sequence, len(body)) + body

    return [
        b"\x01" + message(_REQUEST, 0, 1, b"abc") + message(_REQUEST, 1, 2, bytes(64)),
        b"\x07\x01\x01\x02" + message(_REQUEST, 0, 1, b""),
        b"\x00" + message(_REPLY, 0, 1, b"abc"),
        b"\x02\x00" + message(_REPLY, 0, 1, bytes(96)),
    ]


@functools.cache
def _bell():
    """A process has one."""
    return ProcessDoorbell()


def _pair():
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return near, far


def _end(serves):
    """A channel and its link. One request has been posted by a client."""
    geometry = Geometry(SLOTS, REQUEST, REPLY)
    requests, replies = (
        memory.own_memory("fuzz", native.module.ring_bytes(SLOTS, n)) for n in (REQUEST, REPLY)
    )
    out, into = (replies, requests) if serves else (requests, replies)
    sizes = (REPLY, REQUEST) if serves else (REQUEST, REPLY)
    link = native.module.TcpLink(out, into, SLOTS, *sizes, serves, 3.0)
    kind = SlotServer if serves else SlotClient
    rings = {"requests": requests, "replies": replies, "notifier": link}
    channel = kind("tcp", "aw0", 1, geometry, _bell(), **rings)
    channel.bind(link)
    return SimpleNamespace(channel=channel, link=link)


def _take(channel, serves):
    """What has come, within its slot."""
    if not serves:
        reply = channel.reply(0)
        assert reply is None or len(reply) <= REPLY
    elif (request := channel.poll()) is not None:
        assert len(request.data) <= REQUEST


@family.add(_messages)
def tcp_link(data):
    """The native receiver. Whatever it hears, it ends when the connections do."""
    if native.reason is not None:
        raise RuntimeError(native.reason)
    first = data[0] if data else 0
    serves, control_bytes = bool(first & 1), (first >> 1) % 8
    control_says, data_says = data[1 : 1 + control_bytes], data[1 + control_bytes :]
    end = _end(serves)
    (near_data, far_data), (near_control, far_control) = _pair(), _pair()
    with near_data, near_control:
        end.link.start(far_data.detach(), far_control.detach(), end.channel.native, _bell().native)
        if not serves:
            end.channel.post(end.channel.acquire(), 1)
        with contextlib.suppress(OSError):  # it has heard enough, and hung up
            near_control.sendall(control_says)
            near_data.sendall(data_says)
            near_data.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _WITHIN_S
        while end.channel.lost is None:
            _take(end.channel, serves)
            assert time.monotonic() < deadline, "it waits for more"
            time.sleep(0.0002)
    _take(end.channel, serves)
    end.channel.close()
