"""Which transport two processes use with each other. Pure.

A listener that offers several has one address, flat as it travels as data: `kind` auto, `node`,
and each transport's own address under its name (`tcp.host`, `tcp.port`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The best first.
KINDS = ("shm", "rdma", "tcp")
AUTO = "auto"

_Addresses = dict[str, dict[str, str]]


@dataclass(frozen=True, slots=True)
class Side:
    """What one process can use. `node`: the boot it runs on, None if it is not known.

    fabric: of its RDMA port (`rdma_ports.Port.fabric`), None if it has none
    """

    kinds: frozenset[str]
    node: str | None = None
    fabric: str | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """A listener's address, taken apart: its address by transport."""

    side: Side
    addresses: _Addresses = field(default_factory=dict)


class Choice(NamedTuple):
    """A transport. `reason`: why it is not a better one, if that is not a matter of course."""

    kind: str
    reason: str = ""


def choose(mine: Side, theirs: Side, failed: Mapping[str, str] | None = None) -> Choice | str:
    """shm on one node, else rdma on one fabric, else tcp; or why there is no way at all.

    failed: transports that were tried, and what came of it
    """
    reasons = []
    for kind in KINDS:
        if failed and kind in failed:
            reasons.append(f"{kind}: {failed[kind]}")
        elif kind not in mine.kinds | theirs.kinds:
            continue
        elif kind not in mine.kinds & theirs.kinds:
            reasons.append(f"{kind}: only {'here' if kind in mine.kinds else 'there'}")
        elif kind == "shm" and None not in (mine.node, theirs.node) and mine.node != theirs.node:
            continue
        elif kind == "rdma" and mine.fabric != theirs.fabric:
            reasons.append(f"rdma: {mine.fabric} here, {theirs.fabric} there")
        else:
            return Choice(kind, "; ".join(reasons))
    return "; ".join(reasons) or "shm: on another node"


def merge(node: str, addresses: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """One address that offers all of these."""
    merged = {"kind": AUTO, "node": node}
    for address in addresses:
        kind = address["kind"]
        merged |= {f"{kind}.{key}": value for key, value in address.items() if key != "kind"}
    return merged


def take_apart(address: Mapping[str, str]) -> Offer | None:
    """What an address offers, of one transport or of several; None if it is none at all."""
    kind = address.get("kind")
    if kind in KINDS:
        addresses: _Addresses = {kind: dict(address)}
    elif kind == AUTO:
        addresses = {}
        for key, value in address.items():
            name, dot, rest = key.partition(".")
            if dot and name in KINDS:
                addresses.setdefault(name, {"kind": name})[rest] = value
    else:
        return None
    fabric = addresses.get("rdma", {}).get("fabric")
    return Offer(Side(frozenset(addresses), address.get("node"), fabric), addresses)
