"""Which backend runs the experts of a worker."""

from __future__ import annotations

import importlib
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tarragon_hpc import native
from tarragon_hpc.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tarragon_hpc.models.spec import ExpertShape
    from tarragon_hpc.ops.base import ExpertBank, ExpertTensors

log = logging.getLogger(__name__)


def make_bank(
    backend: Literal["auto", "native", "torch"],
    tensors: Mapping[tuple[int, int], ExpertTensors],
    shape: ExpertShape,
    threads: int,
    device: str | None = None,
) -> ExpertBank:
    """The bank for `experts.backend`.

    auto: the GPU if there is one that torch can use, else the native kernel, else torch on the CPU,
    with a warning. torch: `device`, by default the GPU if there is one. torch is not imported where
    it is not going to be used. `tensors` by (layer, expert); `threads` counts CPU threads.
    Raises ConfigError where the backend cannot be had, ModelError for tensors that do not fit.
    """
    if device is None and backend != "native" and has_cuda():
        device = "cuda"
    if backend == "native" or (backend == "auto" and device is None):
        if native.reason is None:
            from tarragon_hpc.ops.native_bank import NativeBank

            return NativeBank(tensors, shape, threads)
        if backend == "native":
            raise ConfigError("experts.backend", f"native is not installed ({native.reason})")
        log.warning("experts run on torch, slowly: %s", native.reason)
    if find_spec("torch") is None:
        other = "" if native.reason is None else f", nor the native kernel ({native.reason})"
        raise ConfigError("experts.backend", f"{backend}: torch is not installed{other}")
    if device is None or device == "cpu":
        from tarragon_hpc.ops.torch_bank import TorchBank

        return TorchBank(tensors, shape, threads)
    from tarragon_hpc.ops.cuda_bank import CudaBank

    return CudaBank(tensors, shape, device)


def has_cuda() -> bool:
    """Whether torch is installed and finds a GPU; it is not asked if the system shows none."""
    if not shows_gpu() or find_spec("torch") is None:
        return False
    torch = importlib.import_module("torch")
    return bool(torch.cuda.is_available())


def shows_gpu() -> bool:
    """Whether the system shows a GPU, usable or not. Touches nothing."""
    nodes = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
    return any(Path(node).exists() for node in nodes)
