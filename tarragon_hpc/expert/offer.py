"""What an EW serves, and what it says to a dispatch that asks for something else. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tarragon_hpc.wire import dispatch as wire

if TYPE_CHECKING:
    from tarragon_hpc.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Offer:
    """`incarnation` is this EW's; `dtype` is the wire's code of the served type."""

    incarnation: int
    experts: frozenset[int]
    layers: frozenset[int]
    hidden: int
    dtype: int

    @classmethod
    def of(cls, spec: ModelSpec, experts: frozenset[int], incarnation: int) -> Offer:
        """What an EW with these experts of a model serves."""
        dtype, _ = wire.DTYPES[spec.dtype]
        return cls(incarnation, experts, frozenset(spec.moe_layers), spec.shape.hidden, dtype)

    def status(
        self, header: wire.RequestHeader, groups: list[tuple[int, int, int]], incarnation: int
    ) -> int:
        """STATUS_OK if a well-formed dispatch of the AW's `incarnation` can be served."""
        if header.incarnation != incarnation:
            return wire.STATUS_STALE
        if (
            header.hidden != self.hidden
            or header.dtype != self.dtype
            or header.layer not in self.layers
        ):
            return wire.STATUS_BAD_REQUEST
        for expert, _, _ in groups:
            if expert not in self.experts:
                return wire.STATUS_UNKNOWN_EXPERT
        return wire.STATUS_OK

    def answer(self, header: wire.RequestHeader, status: int, compute_ns: int) -> bytes:
        """The header of the reply to a dispatch."""
        return wire.pack_reply_header(
            wire.ReplyHeader(
                header.dtype,
                status,
                self.incarnation,
                header.epoch,
                header.sequence,
                header.layer,
                header.rows,
                header.pairs,
                header.hidden,
                compute_ns,
            )
        )
