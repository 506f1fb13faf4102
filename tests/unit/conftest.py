"""Checkpoints written by hand, tensor by tensor, without torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

_TYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "uint8": "U8"}


class HandMade(Protocol):
    """Writes `tensors` into `root / file`: arrays, or (safetensors type, array)."""

    def __call__(
        self,
        tensors: dict[str, np.ndarray | tuple[str, np.ndarray]],
        config: dict[str, Any] | None = None,
        file: str = "model.safetensors",
    ) -> Path: ...


@pytest.fixture
def hand_made(tmp_path: Path) -> HandMade:
    def write(tensors, config=None, file="model.safetensors"):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        body = b""
        for name, value in tensors.items():
            dtype, array = value if isinstance(value, tuple) else (_TYPES[str(value.dtype)], value)
            data = array.tobytes()
            header[name] = {
                "dtype": dtype,
                "shape": list(array.shape),
                "data_offsets": [len(body), len(body) + len(data)],
            }
            body += data
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # as the reference implementation aligns the tensors
        (tmp_path / file).write_bytes(len(text).to_bytes(8, "little") + text + body)
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write
