"""Load the weights of some experts from a checkpoint.

Where the checkpoint already holds what is served (same type, one [out, in] matrix per projection)
the arrays are views on the file mapping: nothing is copied, and EWs on the same node share the
pages. Where it does not (another type, quantised, transposed or interleaved), they are copies in
this process's memory, made one expert at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tarragon_hpc.errors import ModelError
from tarragon_hpc.expert import dequant
from tarragon_hpc.models.checkpoint import Checkpoint, open_checkpoint
from tarragon_hpc.models.describe import read_config
from tarragon_hpc.models.expert_layout import Layout, find_layout, weight_names
from tarragon_hpc.models.families import BY_FAMILY
from tarragon_hpc.models.quantization import Quantization, read_quantization
from tarragon_hpc.ops.base import ExpertTensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from tarragon_hpc.models.spec import ModelSpec

_PAGE = 4096


class Footprint(NamedTuple):
    """Bytes of weights: on the file mapping (shared with others), and copied."""

    mapped: int
    copied: int


def load_experts(
    spec: ModelSpec, experts: Iterable[int], layers: Iterable[int] | None = None
) -> dict[tuple[int, int], ExpertTensors]:
    """The tensors of `experts` in `layers` (all MoE layers by default), by (layer, expert).

    Raises ModelError if a tensor is missing or has another shape or type than config.json says,
    and ValueError for experts or layers that the model does not have.
    """
    return ExpertReader(spec).load(experts, layers)


def footprint(tensors: Mapping[tuple[int, int], ExpertTensors]) -> Footprint:
    """How many bytes lie on the mapping and how many were copied."""
    mapped = copied = 0
    for array in _arrays(tensors):
        if array.flags.writeable:
            copied += array.nbytes
        else:
            mapped += array.nbytes
    return Footprint(mapped, copied)


def read_ahead(tensors: Mapping[tuple[int, int], ExpertTensors]) -> None:
    """Touch every page, so that no dispatch waits for the disk. Releases the GIL."""
    for array in _arrays(tensors):
        array.reshape(-1).view(np.uint8)[::_PAGE].max(initial=0)


def _arrays(tensors: Mapping[tuple[int, int], ExpertTensors]) -> Iterable[NDArray[Any]]:
    for expert in tensors.values():
        for array in (
            expert.gate,
            expert.up,
            expert.down,
            expert.gate_bias,
            expert.up_bias,
            expert.down_bias,
        ):
            if array is not None:
                yield array


class ExpertReader:
    """One checkpoint, read expert by expert. It keeps the index: a later load need not parse it."""

    def __init__(self, spec: ModelSpec) -> None:
        root = Path(spec.path)
        self._spec = spec
        self._rules = BY_FAMILY[spec.family]
        self._checkpoint: Checkpoint = open_checkpoint(root)
        self._quantization: Quantization | None = read_quantization(read_config(root), self._rules)

    def __repr__(self) -> str:
        return f"ExpertReader({self._checkpoint!r})"

    def load(
        self, experts: Iterable[int], layers: Iterable[int] | None = None
    ) -> dict[tuple[int, int], ExpertTensors]:
        """See `load_experts`."""
        spec, wanted = self._spec, sorted(set(experts))
        if wanted and not 0 <= wanted[0] <= wanted[-1] < spec.experts:
            raise ValueError(f"experts {wanted} of a model with {spec.experts}")
        moe_layers = spec.moe_layers if layers is None else tuple(layers)
        if not set(moe_layers) <= set(spec.moe_layers):
            raise ValueError(f"layers {moe_layers} of a model with experts in {spec.moe_layers}")
        return {(layer, e): self._expert(layer, e) for layer in moe_layers for e in wanted}

    def _expert(self, layer: int, expert: int) -> ExpertTensors:
        layout = find_layout(self._checkpoint, self._rules, layer)
        if layout is None:
            raise ModelError(f"{self._spec.path}: has no expert tensors for layer {layer}")
        names = weight_names(self._rules, layout, layer, expert)
        match layout:
            case Layout.EACH:
                return self._each(*names)
            case Layout.FUSED:
                return self._fused(expert, *names)
            case Layout.GPT_OSS:
                return self._gpt_oss(expert, *names)
            case Layout.MXFP4:
                return self._mxfp4(expert, *names)

    def _each(self, gate: str, up: str, down: str) -> ExpertTensors:
        hidden, ffn = self._spec.shape.hidden, self._spec.shape.ffn
        return self._tensors(
            self._matrix(gate, (ffn, hidden)),
            self._matrix(up, (ffn, hidden)),
            self._matrix(down, (hidden, ffn)),
        )

    def _fused(self, expert: int, gate_up: str, down: str) -> ExpertTensors:
        hidden, ffn, experts = self._spec.shape.hidden, self._spec.shape.ffn, self._spec.experts
        both = self._raw(gate_up, (experts, 2 * ffn, hidden))[expert]
        last = self._raw(down, (experts, hidden, ffn))[expert]
        return self._tensors(
            self._served(gate_up, both[:ffn]),
            self._served(gate_up, both[ffn:]),
            self._served(down, last),
        )

    def _gpt_oss(self, expert: int, *names: str) -> ExpertTensors:
        gate_up, gate_up_bias, down, down_bias = names
        hidden, ffn, experts = self._spec.shape.hidden, self._spec.shape.ffn, self._spec.experts
        both = self._raw(gate_up, (experts, hidden, 2 * ffn))[expert]
        last = self._raw(down, (experts, ffn, hidden))[expert]
        return self._tensors(
            self._served(gate_up, both[:, 0::2].T),
            self._served(gate_up, both[:, 1::2].T),
            self._served(down, last.T),
            *self._biases(expert, gate_up_bias, down_bias),
        )

    def _mxfp4(self, expert: int, *names: str) -> ExpertTensors:
        gate_up, gate_up_bias, down, down_bias = names
        hidden, ffn = self._spec.shape.hidden, self._spec.shape.ffn
        both = self._mxfp4_matrix(gate_up, expert, 2 * ffn, hidden)
        last = self._mxfp4_matrix(down, expert, hidden, ffn)
        return self._tensors(
            dequant.from_float32(np.ascontiguousarray(both[0::2]), self._spec.dtype),
            dequant.from_float32(np.ascontiguousarray(both[1::2]), self._spec.dtype),
            dequant.from_float32(last, self._spec.dtype),
            *self._biases(expert, gate_up_bias, down_bias),
        )

    def _mxfp4_matrix(self, name: str, expert: int, rows: int, columns: int) -> NDArray[np.float32]:
        experts, groups = self._spec.experts, -(-columns // 32)
        scales_name = name.removesuffix("blocks") + "scales"
        blocks = self._raw(name, (experts, rows, groups, 16), "U8")[expert]
        scales = self._raw(scales_name, (experts, rows, groups), "U8")[expert]
        return dequant.mxfp4(blocks, scales)[:, :columns]

    def _biases(
        self, expert: int, gate_up: str, down: str
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        hidden, ffn, experts = self._spec.shape.hidden, self._spec.shape.ffn, self._spec.experts
        both = self._raw(gate_up, (experts, 2 * ffn))[expert]
        last = self._raw(down, (experts, hidden))[expert]
        return (
            self._served(gate_up, both[0::2]),
            self._served(gate_up, both[1::2]),
            self._served(down, last),
        )

    def _matrix(self, name: str, shape: tuple[int, int]) -> NDArray[Any]:
        """A whole tensor in the served type, dequantised if it is FP8."""
        raw = self._raw(name, shape)
        if self._checkpoint.info(name).dtype != "F8_E4M3" or self._quantization is None:
            return self._served(name, raw)
        scale_name = name + "_scale_inv"
        stored = self._checkpoint.info(scale_name).dtype
        if stored not in dequant.SERVED:
            raise self._wrong_type(scale_name)
        scale = dequant.to_float32(self._checkpoint.view(scale_name), stored)
        try:
            values = dequant.fp8_block(raw, scale, self._quantization.block)
        except ValueError as error:
            raise ModelError(f"{self._spec.path}: tensor {scale_name!r} has {error}") from None
        return dequant.from_float32(values, self._spec.dtype)

    def _raw(self, name: str, shape: tuple[int, ...], dtype: str | None = None) -> NDArray[Any]:
        array = self._checkpoint.view(name)
        if array.shape != shape:
            raise ModelError(
                f"{self._spec.path}: tensor {name!r} has shape {array.shape}, expected {shape}"
            )
        if dtype is not None and self._checkpoint.info(name).dtype != dtype:
            raise self._wrong_type(name, dtype)
        return array

    def _wrong_type(self, name: str, *allowed: str) -> ModelError:
        return ModelError(
            f"{self._spec.path}: tensor {name!r} has type {self._checkpoint.info(name).dtype}; "
            f"allowed here: {', '.join(allowed or dequant.SERVED)}"
        )

    def _served(self, name: str, part: NDArray[Any]) -> NDArray[Any]:
        """(Part of) a tensor in the served type: a view if it lies there as it is wanted."""
        stored = self._checkpoint.info(name).dtype
        if stored not in dequant.SERVED:
            raise self._wrong_type(name)
        if dequant.SERVED[stored] != self._spec.dtype:
            values = dequant.to_float32(part, stored)
            return np.ascontiguousarray(dequant.from_float32(values, self._spec.dtype))
        if part.flags.c_contiguous and part.flags.aligned:
            return part
        return np.array(part, order="C")

    def _tensors(
        self,
        gate: NDArray[Any],
        up: NDArray[Any],
        down: NDArray[Any],
        gate_bias: NDArray[Any] | None = None,
        up_bias: NDArray[Any] | None = None,
        down_bias: NDArray[Any] | None = None,
    ) -> ExpertTensors:
        bfloat16 = self._spec.dtype == "bfloat16"
        return ExpertTensors(gate, up, down, gate_bias, up_bias, down_bias, bfloat16)
