"""How large the messages between an AW and a store are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.transport.base import Geometry
from tarragon_hpc.wire import kv

if TYPE_CHECKING:
    from tarragon_hpc.checkpoint.row_layout import RowLayout
    from tarragon_hpc.config.schema import CheckpointConfig


def geometry(layout: RowLayout, config: CheckpointConfig) -> Geometry:
    """Of the channels to stores: a message has room for one token's rows, with their tables."""
    put = kv.put_payload(1, 1, layout.layers, commit=True) + layout.token_bytes
    request, reply = max(config.slot_bytes, put), max(config.slot_bytes, fetched_bytes(layout, 1))
    return Geometry(config.slots, request, reply)


def rows_per_reply(layout: RowLayout, reply_bytes: int) -> int:
    """How many rows of all layers a reply has room for."""
    return kv.rows_that_fit(reply_bytes, layout.layers, layout.token_bytes)


def fetched_bytes(layout: RowLayout, rows: int) -> int:
    """Bytes of an answer with so many rows."""
    return kv.fetched_bytes(rows, layout.layers, layout.token_bytes)
