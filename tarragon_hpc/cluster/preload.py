"""A process that imports what workers need before it is one: what the fork servers and the warm
spares of a Slurm job have in common.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tarragon_hpc.cluster import entry
from tarragon_hpc.ids import Role

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tarragon_hpc.config import Config

# Each has a function `preload`, which imports what a worker of the role imports later on; the main
# module of a CS imports everything itself.
_PRELOAD = {Role.AW: "tarragon_hpc.attention.preload", Role.EW: "tarragon_hpc.expert.preload"}
_OPENMP = ("libgomp", "libomp", "libiomp")

ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""During the imports: numpy's BLAS would start threads; CUDA must be asked about, not initialised.
"""


def preload_model(roles: Collection[Role], config: Config) -> None:
    """After `preload`, what depends on the model. Raises ConfigError, ModelError, ClusterError."""
    if Role.AW in roles:
        from tarragon_hpc.models.describe import describe  # numpy: not before ENVIRONMENT is set

        architecture = describe(config.model.path, config.model.dtype).architecture
        importlib.import_module(_PRELOAD[Role.AW]).preload_model(architecture)


def settle() -> None:
    """What is there stays: no collection looks at it, or writes to its pages, any more."""
    gc.collect()
    gc.freeze()


def preload(roles: Collection[Role]) -> None:
    """Import all that workers of these roles import; takes seconds. An AW's comes first: it sets
    what vLLM must find in the environment.
    """
    for role in sorted(roles):
        importlib.import_module(entry.MAIN[role])
        if role in _PRELOAD:
            importlib.import_module(_PRELOAD[role]).preload()


def become(name: str, env: Mapping[str, str | None]) -> None:
    """Take a worker's name, and what differs in its environment (None: not set)."""
    Path("/proc/self/comm").write_text(name[:15])
    change(env)
    # random reseeds itself; torch starts from the same state in every process.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():
        _set_openmp_threads(int(threads))


def change(env: Mapping[str, str | None]) -> None:
    """Change the environment; None: not set."""
    for variable, value in env.items():
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = value


def _set_openmp_threads(count: int) -> None:
    """OpenMP has read OMP_NUM_THREADS when it was loaded: tell every runtime that was."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[-1] for line in lines if "/" in line}
    for path in paths:
        if Path(path).name.startswith(_OPENMP):
            ctypes.CDLL(path).omp_set_num_threads(count)
