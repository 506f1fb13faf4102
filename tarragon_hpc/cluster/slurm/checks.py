"""What can be said of a run before Slurm is asked for anything, on the login node.

Transports, GPUs and networks are those of the nodes; the head looks at them there.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.root import local_path
from tarragon_hpc.cluster.slurm.resources import components
from tarragon_hpc.cluster.slurm.script import head_script
from tarragon_hpc.gateway.tls import server_context
from tarragon_hpc.models.describe import describe
from tarragon_hpc.orchestrator.placement import place

if TYPE_CHECKING:
    from tarragon_hpc.config import Config


def prepared(config: Config) -> Config:
    """The configuration as the nodes should read it: paths that hold in every directory, and any
    port unless one was asked for (another run may have the default one). Raises ConfigError.
    """
    gateway = config.gateway
    changes = {
        "port": gateway.port if "port" in gateway.model_fields_set else 0,
        "tls_certificate": _absolute(gateway.tls_certificate),
        "tls_key": _absolute(gateway.tls_key),
    }
    model, run = config.model, config.run
    return config.model_copy(
        update={
            "gateway": gateway.model_copy(update=changes),
            "model": model.model_copy(update={"path": _absolute(model.path)}),
            "run": run.model_copy(update={"root": str(local_path(run.root))}),
        }
    )


def check(config: Config) -> None:
    """Whether the checkpoint, the experts' placement, the certificate and the nodes make sense.

    Raises ConfigError or ModelError.
    """
    components(config)
    head_script(config, [], job_name="", output="")
    model = describe(config.model.path, config.model.dtype)
    place(model.experts, config.experts, model.expert_bytes)
    server_context(config.gateway)


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(os.path.expanduser(path))
