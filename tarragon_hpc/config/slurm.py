"""The keys of `cluster.slurm`: what a run asks of Slurm, and what a site insists on."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from tarragon_hpc.config.section import Section

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_TEXT = r"^[^\s'\"\\`$]+$"

Word = Annotated[str, Field(pattern=_TEXT)]


def time_minutes(text: str) -> int:
    """Slurm's forms of a time limit (minutes, H:MM:SS, D-HH:MM:SS …), in minutes, rounded up.

    Raises ValueError.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError("expected minutes, HOURS:MM:SS or DAYS-HOURS:MM:SS")
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match[1] is not None:  # D-H[:M[:S]]
        seconds = ((days * 24 + first) * 60 + second) * 60 + third
    elif match[4] is not None:  # H:M:S
        seconds = (first * 60 + second) * 60 + third
    else:  # M[:S]
        seconds = first * 60 + second
    return -(-seconds // 60)


class NodesConfig(Section):
    """One kind of nodes. A slot is room for one AW or EW: a GPU, or just CPUs."""

    partition: Word | None = None
    constraint: Annotated[str, Field(min_length=1)] | None = None
    nodes: int | None = Field(None, ge=1, le=4096, description="default: as few as hold the slots")
    gpus_per_node: int = Field(0, ge=0, le=64, description="0: CPUs only")
    gpu_type: Word | None = Field(None, description="such as a100")
    slots_per_node: int | None = Field(
        None, ge=1, le=64, description="AWs and EWs of a node; default: one per GPU, else 1"
    )
    cpus_per_slot: int = Field(4, ge=1, le=512)
    memory: Word | None = Field(
        None, description="of a node, such as 64G; default: nothing is asked for"
    )

    @property
    def slots(self) -> int:
        """Per node."""
        return self.slots_per_node or self.gpus_per_node or 1

    @property
    def gpus_per_slot(self) -> int:
        """What each AW or EW gets."""
        return 1 if self.gpus_per_node else 0

    @field_validator("slots_per_node")
    @classmethod
    def _a_gpu_each(cls, value: int | None, info: ValidationInfo) -> int | None:
        gpus = info.data.get("gpus_per_node", 0)
        if value is not None and 0 < gpus < value:
            raise ValueError(f"every slot has a GPU, and gpus_per_node is {gpus}")
        return value


class SlurmConfig(Section):
    """What a run asks of Slurm."""

    site: str | None = Field(
        None,
        min_length=1,
        description="a file of what the site needs, or its name; read first, and gone afterwards",
    )
    topology: Literal["single", "hetjob", "pool"] = Field(
        "single",
        description="one job; a job of components (head and stores, AWs, EWs); or a job per worker",
    )
    nodes: NodesConfig = Field(NodesConfig(), description="of all, unless said otherwise below")
    head_nodes: NodesConfig | None = Field(None, description="hetjob, pool: of head and stores")
    aw_nodes: NodesConfig | None = Field(None, description="hetjob, pool: of the AWs")
    ew_nodes: NodesConfig | None = Field(None, description="hetjob, pool: of the EWs")
    spares: int = Field(
        1, ge=0, le=1024, description="slots more than workers (hetjob: of AWs and of EWs each)"
    )
    warm_spares: bool = Field(True, description="spare slots hold processes with all imports done")
    standby_head: bool = Field(True, description="a second head waits on another node")
    replacement_jobs: bool = Field(
        True, description="a worker for which no slot is left gets a job of its own"
    )
    allow_fragile: bool = Field(False, description="hetjob: components of one node")
    time: str = Field("24:00:00", description="limit of a job")
    signal_s: int = Field(
        180, ge=60, le=3600, description="before the limit; Slurm may be 60 s early"
    )
    on_timelimit: Literal["stop", "chain"] = Field(
        "stop", description="chain: a successor waits in the queue and takes over"
    )
    max_chain: int = Field(100, ge=1, le=10_000, description="jobs of one run, one after the other")
    hopeless_s: float = Field(
        600, gt=0, description="without any AW, or an EW for some expert: the nodes are given back"
    )
    poll_s: float = Field(10, ge=10, description="between two looks at the queue")
    step_wait_s: int = Field(3, ge=1, le=600, description="srun --immediate")
    account: Word | None = None
    qos: Word | None = None
    reservation: Word | None = None
    gpu_flag: Literal["gres", "gpus-per-node"] = "gres"
    directives: dict[Word, str | int | bool] = Field(
        {}, description="more #SBATCH flags, e.g. {mail-type: END}; true: without a value"
    )
    directives_skip: list[Word] = Field([], description="#SBATCH flags to leave out, e.g. [mem]")
    modules: list[Word] = Field([], description="module load these")
    prologue: str = Field("", description="shell lines before the head and before every worker")

    @field_validator("signal_s")
    @classmethod
    def _leaves_time(cls, value: int, info: ValidationInfo) -> int:
        time = info.data.get("time")
        if time is not None and value + 60 > 60 * time_minutes(time):
            raise ValueError(
                f"too long for jobs of {time}: 60 s must be left, and Slurm may be early"
            )
        return value

    @field_validator("time", mode="before")
    @classmethod
    def _is_quoted(cls, value: object) -> object:
        if isinstance(value, int):  # YAML reads 24:00:00 as 86400
            raise ValueError("must be in quotes, such as '24:00:00'")
        return value

    @field_validator("time")
    @classmethod
    def _is_a_time(cls, value: str) -> str:
        if time_minutes(value) < 1:
            raise ValueError("must be a minute or more")
        return value
