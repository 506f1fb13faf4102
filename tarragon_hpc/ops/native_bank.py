"""Experts on the CPU, by the compiled kernel (kernels/ffn*.cpp).

Every output element is one dot product over K, summed in fp32 in an order that K alone fixes: a row
gives the same bits in any batch, on any number of threads and with any instruction set. Gate, up
and activation stay in fp32; the intermediate and the output are rounded to the dtype once each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc import native
from tarragon_hpc.ops.tensors import check, nbytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tarragon_hpc.models.spec import ExpertShape
    from tarragon_hpc.ops.base import ExpertTensors, Segment


class NativeBank:
    """An `ExpertBank` over mapped weights, which are read where they lie and kept alive.

    `threads` includes the caller of `run`; the others sleep between batches and are started here,
    so build the bank after any fork. Batches run one at a time. `isa` forces one of
    `native.module.ffn_instruction_sets()` (tests); ValueError if the machine does not have it.
    Raises ModelError for tensors that do not fit `shape`.
    """

    def __init__(
        self,
        tensors: Mapping[tuple[int, int], ExpertTensors],
        shape: ExpertShape,
        threads: int = 1,
        *,
        isa: str = "auto",
    ) -> None:
        self._tensors = dict(tensors)  # keeps the mappings alive
        self._bank = native.module.FfnBank(
            hidden=shape.hidden,
            ffn=shape.ffn,
            activation=shape.activation,
            alpha=shape.alpha,
            limit=shape.limit,
            dtype=check(tensors, shape),
            threads=threads,
            isa=isa,
        )
        for (layer, expert), t in self._tensors.items():
            addresses = (
                0 if array is None else array.ctypes.data
                for array in (t.gate, t.up, t.down, t.gate_bias, t.up_bias, t.down_bias)
            )
            self._bank.add(layer, expert, *addresses)

    def __repr__(self) -> str:
        return f"NativeBank({len(self._tensors)} x (layer, expert), {self._bank!r})"

    def experts(self) -> frozenset[int]:
        """Ids of the loaded experts."""
        return frozenset(expert for _, expert in self._tensors)

    def run(self, layer: int, segments: list[Segment]) -> None:
        """See `ExpertBank.run`."""
        self._bank.run(layer, segments)

    def nbytes(self) -> int:
        """Bytes of weights, all of them mapped by the caller."""
        return nbytes(self._tensors)
