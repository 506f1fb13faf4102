"""What two ends of an RDMA channel tell each other to connect their queue pairs. Pure.

It travels sealed (`net_join.py`): whoever knows address and key can write the ring. It is the
peer's word all the same, and checked before it is used.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated

import msgspec

from tarragon_hpc.errors import ConnectFailed

MTUS = (256, 512, 1024, 2048, 4096)

_Queue = Annotated[int, msgspec.Meta(ge=1, le=(1 << 24) - 1)]
_Packet = Annotated[int, msgspec.Meta(ge=0, le=(1 << 24) - 1)]


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One end's queue pairs and the ring that the other end is to write.

    fabric: see `rdma_ports.Port`; gid, lid: address of its port there
    mtu: of its port, in bytes
    data, control: queue pair numbers; data_psn, control_psn: their first packet numbers
    ring, rkey: address and key of the ring
    """

    fabric: str
    gid: str
    lid: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
    mtu: int
    data: _Queue
    data_psn: _Packet
    control: _Queue
    control_psn: _Packet
    ring: Annotated[int, msgspec.Meta(ge=64, le=(1 << 63) - 1)]
    rkey: Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]


def encode(offer: Offer) -> dict[str, str]:
    """As `net_join` carries it."""
    return {key: str(value) for key, value in msgspec.structs.asdict(offer).items()}


def decode(fields: dict[str, str], fabric: str, ring_bytes: int) -> Offer:
    """The peer's offer, checked against this end's fabric and the size of the ring it is about.

    Raises ConnectFailed, which names the field.
    """
    try:
        offer = msgspec.convert(fields, Offer, strict=False)
    except msgspec.ValidationError as error:
        raise ConnectFailed(f"the peer's RDMA offer: {error}") from None
    for problem in (
        _fabric_problem(offer, fabric),
        _gid_problem(offer.gid),
        None if offer.mtu in MTUS else f"mtu: {offer.mtu}; allowed are {MTUS}",
        f"ring: {offer.ring:#x} is not aligned to 64 bytes" if offer.ring % 64 else None,
        "ring: it ends beyond memory" if offer.ring + ring_bytes > 1 << 63 else None,
    ):
        if problem is not None:
            raise ConnectFailed(f"the peer's RDMA offer: {problem}")
    return offer


def _fabric_problem(offer: Offer, fabric: str) -> str | None:
    if offer.fabric != fabric:
        return f"fabric: {offer.fabric}; this end is on {fabric}"
    if offer.fabric.startswith("ib:") and not offer.lid:
        return "lid: 0; on InfiniBand it is at least 1"
    return None


def _gid_problem(gid: str) -> str | None:
    try:
        address = ipaddress.IPv6Address(gid)
    except ValueError:
        return f"gid: {gid!r} is not 16 bytes in the notation of IPv6"
    if int(address) == 0 or address.scope_id is not None:
        return f"gid: {gid} is no address of a port"
    return None
