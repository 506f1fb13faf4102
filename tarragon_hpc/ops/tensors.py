"""What every backend checks before it takes an EW's experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tarragon_hpc.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from numpy.typing import NDArray

    from tarragon_hpc.models.spec import Dtype, ExpertShape
    from tarragon_hpc.ops.base import ExpertTensors

_NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
ITEMSIZE: dict[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


def arrays(tensors: ExpertTensors) -> Iterator[tuple[str, NDArray[Any]]]:
    """Name and array of everything an expert has."""
    for name in ("gate", "up", "down", "gate_bias", "up_bias", "down_bias"):
        array = getattr(tensors, name)
        if array is not None:
            yield name, array


def nbytes(tensors: Mapping[tuple[int, int], ExpertTensors]) -> int:
    """Bytes of all weights and biases."""
    return sum(array.nbytes for expert in tensors.values() for _, array in arrays(expert))


def check(tensors: Mapping[tuple[int, int], ExpertTensors], shape: ExpertShape) -> Dtype:
    """The one dtype of all experts, which have the given shape.

    Raises ModelError naming the layer, the expert and the tensor otherwise, ValueError if there is
    no expert at all or an array is not C-contiguous.
    """
    if not tensors:
        raise ValueError("no experts to run")
    wide, narrow = (shape.ffn, shape.hidden), (shape.hidden, shape.ffn)
    expected: dict[str, tuple[int, ...]] = {"gate": wide, "up": wide, "down": narrow}
    if shape.bias:
        expected |= {"gate_bias": wide[:1], "up_bias": wide[:1], "down_bias": narrow[:1]}
    dtype = _dtype(next(iter(tensors.values())))
    for (layer, expert), each in tensors.items():
        found = dict(arrays(each))
        where = f"layer {layer} expert {expert}"
        if found.keys() != expected.keys():
            raise ModelError(f"{where}: has {sorted(found)}, expected {sorted(expected)}")
        for name, array in found.items():
            if array.shape != expected[name]:
                raise ModelError(
                    f"{where}: {name} has shape {array.shape}, expected {expected[name]}"
                )
            if array.dtype != _NUMPY[dtype] or each.bfloat16 != (dtype == "bfloat16"):
                raise ModelError(f"{where}: {name} is {array.dtype}, other weights are {dtype}")
            if not array.flags.c_contiguous:
                raise ValueError(f"{where}: {name} is not C-contiguous")
    return dtype


def check_more(
    tensors: Mapping[tuple[int, int], ExpertTensors], shape: ExpertShape, dtype: Dtype
) -> None:
    """The same for experts that join others of `dtype`."""
    found = check(tensors, shape)
    if found != dtype:
        (layer, expert), _ = next(iter(tensors.items()))
        raise ModelError(f"layer {layer} expert {expert}: is {found}, those that run are {dtype}")


def without(
    tensors: Mapping[tuple[int, int], ExpertTensors], experts: Collection[int]
) -> dict[tuple[int, int], ExpertTensors]:
    """All but these experts."""
    return {at: each for at, each in tensors.items() if at[1] not in experts}


def _dtype(tensors: ExpertTensors) -> Dtype:
    if tensors.bfloat16:
        return "bfloat16"
    match tensors.gate.dtype:
        case np.float32:
            return "float32"
        case np.float16:
            return "float16"
        case other:
            raise ModelError(f"expert weights are {other}; float32, bfloat16 or float16 can be run")
