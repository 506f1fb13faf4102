"""Experts on the CPU with torch: the specification of the native kernel, and its stand-in.

The arithmetic is the native kernel's up to the order of summation: fp32 sums (bf16 and fp16 weights
widened), activation in fp32, the intermediate and the output rounded to the dtype once each. So
the two are close; bitwise equality is not claimed. Within one process rows are bitwise independent
of their batch, because every product is made on a tile of exactly 16 rows: torch picks its kernel,
and so its order of summation, by the number of rows.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tarragon_hpc.ops import memory
from tarragon_hpc.ops.tensors import ITEMSIZE, check, check_more, nbytes, without

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tarragon_hpc.models.spec import ExpertShape
    from tarragon_hpc.ops.base import ExpertTensors, Segment

TILE = 16


def activate(shape: ExpertShape, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The activation of `ExpertShape`, in the tensors' dtype."""
    if shape.activation == "silu":
        return torch.nn.functional.silu(gate) * up
    gate = gate.clamp(max=shape.limit)
    up = up.clamp(-shape.limit, shape.limit)
    return (up + 1) * gate * torch.sigmoid(shape.alpha * gate)


class TorchBank:
    """An `ExpertBank` on the CPU. Weights are read where they lie, and kept alive.

    `threads` sets torch's number of threads for the whole process. bf16 and fp16 weights are
    widened anew for every batch: right, but slow. Raises ModelError for tensors that do not fit
    `shape`.
    """

    def __init__(
        self,
        tensors: Mapping[tuple[int, int], ExpertTensors],
        shape: ExpertShape,
        threads: int = 1,
    ) -> None:
        self._tensors = dict(tensors)
        self._shape = shape
        self._name = check(tensors, shape)
        self._dtype = getattr(torch, self._name)
        self._row = shape.hidden * ITEMSIZE[self._name]
        torch.set_num_threads(threads)

    def __repr__(self) -> str:
        return f"TorchBank({len(self._tensors)} x (layer, expert), {self._name}, cpu)"

    def experts(self) -> frozenset[int]:
        """Ids of the loaded experts."""
        return frozenset(expert for _, expert in self._tensors)

    def run(self, layer: int, segments: list[Segment]) -> None:
        """See `ExpertBank.run`."""
        by_expert: defaultdict[int, list[Segment]] = defaultdict(list)
        for segment in segments:
            if (layer, segment.expert) not in self._tensors:
                raise KeyError(f"layer {layer} expert {segment.expert} is not loaded")
            if segment.count:
                by_expert[segment.expert].append(segment)
        for expert, batch in by_expert.items():
            x = np.concatenate([memory.gather(s, self._row) for s in batch])
            rows = torch.from_numpy(x).view(self._dtype)
            y = self._ffn(self._tensors[layer, expert], rows)
            memory.scatter(batch, y.view(torch.uint8).numpy())

    def prepare(
        self, tensors: Mapping[tuple[int, int], ExpertTensors]
    ) -> Mapping[tuple[int, int], ExpertTensors]:
        """See `ExpertBank.prepare`."""
        check_more(tensors, self._shape, self._name)
        return tensors

    def add(self, prepared: Mapping[tuple[int, int], ExpertTensors]) -> None:
        """See `ExpertBank.add`."""
        self._tensors = self._tensors | dict(prepared)

    def remove(self, experts: Collection[int]) -> None:
        """See `ExpertBank.remove`."""
        self._tensors = without(self._tensors, experts)

    def nbytes(self) -> int:
        """Bytes of weights, all of them mapped by the caller."""
        return nbytes(self._tensors)

    def _ffn(self, t: ExpertTensors, x: torch.Tensor) -> torch.Tensor:
        gate, up, down = (self._wide(a) for a in (t.gate, t.up, t.down))
        gate_bias, up_bias, down_bias = (
            0.0 if a is None else self._wide(a) for a in (t.gate_bias, t.up_bias, t.down_bias)
        )
        y = torch.empty_like(x)
        for first in range(0, len(x), TILE):
            rows = x[first : first + TILE]
            tile = torch.zeros(TILE, self._shape.hidden)
            tile[: len(rows)] = rows
            h = activate(self._shape, tile @ gate.t() + gate_bias, tile @ up.t() + up_bias)
            out = h.to(self._dtype).float() @ down.t() + down_bias
            y[first : first + TILE] = out[: len(rows)].to(self._dtype)
        return y

    def _wide(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        return memory.tensor(array, self._dtype).float()
