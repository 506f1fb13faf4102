"""What an EW imports once it knows its experts: a process that forks EWs can have it ready.

Nothing here starts a thread or touches a GPU.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec

from tarragon_hpc import native
from tarragon_hpc.ops.select import shows_gpu


def preload() -> None:
    """Import the backends that `make_bank` may choose on this machine."""
    if native.reason is None:
        importlib.import_module("tarragon_hpc.ops.native_bank")
    if find_spec("torch") is None or (native.reason is None and not shows_gpu()):
        return
    importlib.import_module("tarragon_hpc.ops.torch_bank")
    if shows_gpu() and find_spec("triton") is not None:
        importlib.import_module("tarragon_hpc.ops.cuda_bank")
