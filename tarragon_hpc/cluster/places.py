"""Where each worker of a run has its place, also one that is added while the run serves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.spec import prefix_of, store_spec
from tarragon_hpc.ids import Role, parse_worker_id, worker_id

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from tarragon_hpc.cluster.spec import WorkerSpec
    from tarragon_hpc.config import Config

_GPU = "CUDA_VISIBLE_DEVICES"


class Places(dict[str, "WorkerSpec"]):
    """The specs of a run's workers by their ids; begins with those of `plan_workers`."""

    def __init__(
        self,
        config: Config,
        specs: Sequence[WorkerSpec],
        gpus: Sequence[str],
        *,
        shares_cpus: bool | None = None,
    ) -> None:
        """`gpus`: to be dealt out here; none under Slurm, where a slot has its own. shares_cpus:
        whether AWs and EWs compute on the same; None: if there is no GPU.
        """
        super().__init__({spec.worker: spec for spec in specs})
        self._counts = {
            Role.AW: config.attention.workers,
            Role.EW: config.experts.workers,
            Role.CS: max(1, config.checkpoint.stores),
        }
        self._fraction = config.attention.gpu_memory_fraction
        store = worker_id(Role.CS, 0)  # a run may begin without any
        self._prefixes = config.cluster.prefix
        made = store_spec(
            store, self._prefixes, shares_cpus=not gpus if shares_cpus is None else shares_cpus
        )
        self._first = {store: made} | dict(self)
        self._gpus = gpus

    def prepare(self, workers: Sequence[str], beside: Collection[str]) -> str | None:
        """Make places for more workers `beside` those that stay; why not, or None.

        An added worker shares the CPUs of one that the run began with, in turns: all CPUs were
        dealt out then. It gets the GPU that the fewest use. A CS needs neither.
        """
        made = {spec.worker: spec for spec in map(self._like_the_first, workers)}
        taken = [self[worker] for worker in beside]
        for worker, spec in made.items():
            if self._gpus and spec.role is not Role.CS:
                users = Counter(other.env[_GPU] for other in taken)
                gpu = min(self._gpus, key=lambda g: (users[g], self._gpus.index(g)))  # noqa: B023
                made[worker] = spec = replace(spec, env={**spec.env, _GPU: gpu})
                aws = sum(s.role is Role.AW and s.env[_GPU] == gpu for s in (*taken, spec))
                if spec.role is Role.AW and aws > 1 and aws * self._fraction > 1:
                    return (
                        f"attention.gpu_memory_fraction: {self._fraction:g}: {aws} AWs would "
                        f"share GPU {gpu}; at most {1 / aws:.2f} each"
                    )
            taken.append(spec)
        self.update(made)
        return None

    def _like_the_first(self, worker: str) -> WorkerSpec:
        role, number = parse_worker_id(worker)
        first = self._first[worker_id(role, number % self._counts[role])]
        return replace(first, worker=worker, prefix=prefix_of(worker, self._prefixes))
