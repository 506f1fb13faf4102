"""Experts on the CPU, by the compiled kernel (kernels/ffn*.cpp).

Every output element is one dot product over K, summed in fp32 in an order that K alone fixes: a row
gives the same bits in any batch, on any number of threads and with any instruction set. Gate, up
and activation stay in fp32; the intermediate and the output are rounded to the dtype once each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from tarragon_hpc import native
from tarragon_hpc.ops.tensors import check, check_more, nbytes, without

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tarragon_hpc.models.spec import ExpertShape
    from tarragon_hpc.ops.base import ExpertTensors, Segment

    # By (layer, expert): the tensors, and where they lie (0: no bias).
    _Located: TypeAlias = Mapping[tuple[int, int], tuple[ExpertTensors, tuple[int, ...]]]

_NOWHERE = (0, 0, 0, 0, 0, 0)


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
        self._shape = shape
        self._dtype = check(tensors, shape)
        self._bank = native.module.FfnBank(
            hidden=shape.hidden,
            ffn=shape.ffn,
            activation=shape.activation,
            alpha=shape.alpha,
            limit=shape.limit,
            dtype=self._dtype,
            threads=threads,
            isa=isa,
        )
        self._tensors: dict[tuple[int, int], ExpertTensors] = {}  # keeps the mappings alive
        self._removed: set[tuple[int, int]] = set()
        self.add(_located(tensors))

    def __repr__(self) -> str:
        return f"NativeBank({len(self._tensors)} x (layer, expert), {self._bank!r})"

    def experts(self) -> frozenset[int]:
        """Ids of the loaded experts."""
        return frozenset(expert for _, expert in self._tensors)

    def run(self, layer: int, segments: list[Segment]) -> None:
        """See `ExpertBank.run`."""
        if self._removed:
            for s in segments:
                if (layer, s.expert) in self._removed:
                    raise KeyError(f"layer {layer} expert {s.expert} is not loaded")
        self._bank.run(layer, segments)

    def prepare(self, tensors: Mapping[tuple[int, int], ExpertTensors]) -> _Located:
        """See `ExpertBank.prepare`."""
        check_more(tensors, self._shape, self._dtype)
        return _located(tensors)

    def add(self, prepared: _Located) -> None:
        """See `ExpertBank.add`."""
        for (layer, expert), (_, addresses) in prepared.items():
            self._bank.add(layer, expert, *addresses)
        self._removed -= prepared.keys()
        self._tensors = self._tensors | {at: tensors for at, (tensors, _) in prepared.items()}

    def remove(self, experts: Collection[int]) -> None:
        """See `ExpertBank.remove`."""
        gone = {at for at in self._tensors if at[1] in experts}
        for layer, expert in gone:
            # The kernel knows no removal: it forgets the addresses, and `run` keeps them from use.
            self._bank.add(layer, expert, *_NOWHERE)
        self._removed |= gone
        self._tensors = without(self._tensors, experts)

    def nbytes(self) -> int:
        """Bytes of weights, all of them mapped by the caller."""
        return nbytes(self._tensors)


def _located(tensors: Mapping[tuple[int, int], ExpertTensors]) -> _Located:
    return {
        at: (
            t,
            tuple(
                0 if array is None else array.ctypes.data
                for array in (t.gate, t.up, t.down, t.gate_bias, t.up_bias, t.down_bias)
            ),
        )
        for at, t in tensors.items()
    }
