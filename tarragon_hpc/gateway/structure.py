"""What the output of a request must look like: response_format, structured_outputs. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tarragon_hpc.errors import RequestError
from tarragon_hpc.wire.common import StructureSpec
from tarragon_hpc.wire.structure import KINDS, problem

if TYPE_CHECKING:
    from tarragon_hpc.gateway.schema import GenerationRequest, ResponseFormat, StructuredOutputs


def structure_of(request: GenerationRequest) -> StructureSpec | None:
    """The structure that a request asks for, in either way. Raises RequestError.

    Whether a grammar can be made of it is found out by the AW.
    """
    structure = _from_format(request.response_format)
    if request.structured_outputs is not None:
        if structure is not None:
            raise RequestError(
                "structured_outputs: cannot be given together with response_format",
                param="structured_outputs",
            )
        structure = _from_outputs(request.structured_outputs)
    if structure is not None and (wrong := problem(structure)) is not None:
        raise RequestError(f"{structure.param}: {wrong}", param=structure.param)
    return structure


def _from_format(wanted: ResponseFormat | None) -> StructureSpec | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return StructureSpec("json_object", param="response_format")
    if wanted.json_schema is None:
        raise RequestError(
            'response_format.json_schema: is required with type "json_schema"',
            param="response_format.json_schema",
        )
    return _spec("json", wanted.json_schema.json_schema, "response_format.json_schema.schema")


def _from_outputs(wanted: StructuredOutputs) -> StructureSpec:
    values = {kind: getattr(wanted, "json_" if kind == "json" else kind) for kind in KINDS}
    given = [kind for kind, value in values.items() if value is not None]
    if len(given) != 1:
        raise RequestError(
            f"structured_outputs: must have exactly one of {', '.join(KINDS)}"
            f" (got {' and '.join(given) or 'none'})",
            param="structured_outputs",
        )
    (kind,) = given
    return _spec(kind, values[kind], f"structured_outputs.{kind}")


def _spec(kind: str, value: Any, param: str) -> StructureSpec:
    if kind == "json_object":
        return StructureSpec(kind, param=param)
    if isinstance(value, str):
        return StructureSpec(kind, value, param)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (RecursionError, ValueError) as error:
        raise RequestError(f"{param}: is not usable: {error}", param=param) from None
    return StructureSpec(kind, text, param)
