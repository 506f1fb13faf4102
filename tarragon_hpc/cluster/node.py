"""What a process can say about the node that it runs on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tarragon_hpc.transport.interfaces import read_interfaces

if TYPE_CHECKING:
    from collections.abc import Mapping


def interfaces() -> dict[str, str]:
    """The first address of every network interface that has one; IPv4 if there is."""
    return {i.name: i.addresses[0] for i in read_interfaces() if i.addresses}


def node_name(environ: Mapping[str, str] = os.environ) -> str:
    """What Slurm calls the node that this process is on; empty without Slurm."""
    return environ.get("SLURMD_NODENAME", "")


def step_id(environ: Mapping[str, str] = os.environ) -> str:
    """The Slurm step that this process belongs to, `job.step`; empty without Slurm."""
    job, step = environ.get("SLURM_JOB_ID"), environ.get("SLURM_STEP_ID")
    return f"{job}.{step}" if job and step else ""
