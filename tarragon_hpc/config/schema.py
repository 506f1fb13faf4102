"""The configuration's sections and keys. The defaults live here and nowhere else."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
)

from tarragon_hpc.config.section import Section
from tarragon_hpc.config.slurm import SlurmConfig
from tarragon_hpc.ids import Role, parse_worker_id

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


def _parse_bytes(value: object) -> object:
    """`1073741824` or `"1GiB"`; anything else is left for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = text[len(digits) :].strip()
    try:
        return int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError):
        raise ValueError("expected a number of bytes, such as 268435456 or 256MiB") from None


Bytes = Annotated[int, BeforeValidator(_parse_bytes), Field(gt=0)]
Words = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class ModelConfig(Section):
    """What is served."""

    path: str = Field(min_length=1, description="directory of the checkpoint (config.json inside)")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="arithmetic of attention and experts; auto: the checkpoint's own"
    )
    served_name: str | None = Field(None, description="model name in the API; default: the folder")
    max_model_len: int | None = Field(None, gt=0, description="context; default: the checkpoint's")
    seed: int = Field(0, ge=0, description="engine seed; requests have their own")


class AttentionConfig(Section):
    """Attention workers (AW): vLLM, KV cache, one process each."""

    workers: int = Field(2, ge=1, le=1024)
    threads: int | None = Field(None, gt=0, description="CPU threads of each AW; default: a share")
    max_num_seqs: int = Field(64, gt=0, description="requests stepped together by one AW")
    max_num_batched_tokens: int = Field(
        2048, gt=0, description="tokens per step; longer prompts go in chunks"
    )
    kv_cache: Bytes | None = Field(
        None, description="KV cache per AW; default: 512MiB on CPU, gpu_memory_fraction on GPU"
    )
    gpu_memory_fraction: float = Field(0.85, gt=0, le=1)
    block_size: int | None = Field(None, gt=0, description="tokens per KV block; default: vLLM's")
    prefix_caching: bool = True
    cuda_graphs: Literal["none", "piecewise"] = Field(
        "none", description="GPU only; piecewise leaves attention and the expert call outside"
    )


class BatchingConfig(Section):
    """When an EW starts a layer's batch (paper §5.2)."""

    max_window_us: int = Field(
        10_000, ge=0, description="longest wait for the AWs that have not delivered this layer yet"
    )
    min_rows: int = Field(1024, gt=0, description="enough rows: start without waiting")
    active_ms: int = Field(
        50, ge=0, description="an AW that has not sent for this long is not waited for"
    )


class ExpertsConfig(Section):
    """Expert workers (EW): weights of some experts, all their layers; no state."""

    workers: int = Field(2, ge=1, le=4096)
    shadows: int = Field(0, ge=0, description="idle replicas of every expert on other EWs")
    backend: Literal["auto", "native", "torch"] = Field(
        "auto", description="auto: torch where there is a GPU, else the native CPU kernel"
    )
    threads: int | None = Field(None, gt=0, description="CPU threads of each EW; default: a share")
    placement: dict[str, list[int]] | None = Field(
        None, description="expert ids per EW, e.g. {ew0: [0, 1, 2], ew1: [3]}; default: balanced"
    )
    on_missing: Literal["load", "mask", "wait"] = Field(
        "load", description="an expert that no EW serves: load it on another, mask it, or wait"
    )
    missing_timeout_s: float = Field(
        60, gt=0, description="longest wait for such an expert; then its requests fail"
    )
    memory: Bytes | None = Field(
        None, description="weights of one EW, shadows included; default: no limit"
    )
    frequencies: list[Annotated[float, Field(ge=0)]] | None = Field(
        None, description="how often each expert is chosen; the hottest get shadows first"
    )
    batching: BatchingConfig = BatchingConfig()


class CheckpointConfig(Section):
    """Checkpoint stores (CS): KV segments and the commit ledger."""

    stores: int = Field(
        0, ge=0, le=64, description="0: what a lost AW's requests need is computed anew"
    )
    memory: Bytes = Field(1 << 30, description="KV kept by one store, set aside at its start")
    replicas: Literal[1, 2] = Field(1, description="stores that keep each request's KV")
    restore: Literal["auto", "always"] = Field(
        "auto", description="auto: unless computing a sequence's KV anew is cheaper, as measured"
    )
    checksums: bool = Field(True, description="of every KV segment, from cache to cache")
    queue: Bytes = Field(
        64 << 20, description="KV that an AW holds for stores that are behind; more is sent later"
    )
    slots: int = Field(4, ge=1, le=64, description="messages in flight per (AW, store)")
    slot_bytes: Bytes = Field(1 << 20, description="of one message")
    catch_up: Bytes = Field(
        256 << 20, description="per second and AW: KV sent anew after the loss of a store"
    )

    save_at_handover: bool = Field(
        True, description="KV of unfinished requests goes to the run directory for the next job"
    )

    pause_every: int | None = Field(
        None,
        gt=0,
        description="only for comparison: stop every so many steps and copy all KV",
    )

    @field_validator("replicas")
    @classmethod
    def _enough_stores(cls, value: int, info: ValidationInfo) -> int:
        stores = info.data.get("stores", value)
        if 0 < stores < value:
            raise ValueError(f"needs as many stores, and checkpoint.stores is {stores}")
        return value


class GatewayConfig(Section):
    """The OpenAI-compatible HTTP front door."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, description="0: any free port")
    api_keys: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, min_length=1, description="Bearer keys; default: open"
    )
    max_requests: int = Field(
        1024, gt=0, description="sequences running or waiting; more are answered with 429"
    )
    max_body: Bytes = Field(16 << 20, description="bytes of one HTTP request")
    tls_certificate: str | None = Field(
        None, min_length=1, description="PEM file (chain included); the endpoint is https then"
    )
    tls_key: str | None = Field(
        None,
        min_length=1,
        description="PEM file, not encrypted; with tls_certificate or not at all",
    )
    failover_timeout_s: float = Field(
        60, gt=0, description="longest wait of a request whose AW was lost for another one"
    )
    resume_s: float = Field(
        30,
        ge=0,
        description="how long a resumable stream goes on without its client, and is kept after its"
        " end; so is the answer to an Idempotency-Key",
    )

    @field_validator("tls_key")
    @classmethod
    def _both_or_neither(cls, value: str | None, info: ValidationInfo) -> str | None:
        certificate = info.data.get("tls_certificate", value)
        if (certificate is None) != (value is None):
            other = "is not set" if certificate is None else f"is {certificate!r}"
            raise ValueError(f"gateway.tls_certificate {other}; https needs both, http neither")
        return value


class RdmaConfig(Section):
    """Queue pairs. What is not set is found on each node (`tarragon doctor` shows it)."""

    device: str | None = Field(None, min_length=1, description="such as mlx5_0")
    port: int | None = Field(None, ge=1, le=255)
    gid_index: int | None = Field(None, ge=0, le=4095)
    mtu: Literal[256, 512, 1024, 2048, 4096] | None = None
    timeout: int = Field(
        14, ge=1, le=31, description="a packet is sent again after 4.096 us x 2^timeout"
    )
    retries: int = Field(
        3, ge=0, le=6, description="then the peer is unreachable (7 is for ever on some devices)"
    )


class TransportConfig(Section):
    """The data plane: between AWs and EWs, and AWs and CSs."""

    kind: Literal["auto", "shm", "tcp", "rdma"] = Field(
        "auto", description="auto: shm on one node, else rdma where both ends have it, else tcp"
    )
    interface: str | None = Field(
        None,
        min_length=1,
        description="network of workers and head: a name (ib0), an address or a block "
        "(10.1.0.0/16); default: this machine only, on a cluster the way to the head",
    )
    silent_loss_ms: int = Field(
        3000, ge=100, description="a connection that is dead silent for so long is given up"
    )
    rdma: RdmaConfig = RdmaConfig()
    slots: int = Field(4, ge=1, le=256, description="requests in flight per (AW, EW)")
    slot_rows: int = Field(256, ge=1, le=65536, description="rows of one slot; more go in several")
    spin_us: int = Field(
        20,
        ge=0,
        le=1000,
        description="busy wait before sleeping; none where AWs and EWs share CPUs",
    )


class DetectionConfig(Section):
    """How the death, stop or slowness of a worker is noticed."""

    heartbeat_ms: int = Field(100, gt=0, description="control-plane heartbeat of a worker")
    heartbeat_misses: int = Field(10, gt=0, description="missed heartbeats: unresponsive")
    reply_timeout_ms: int = Field(10_000, gt=0, description="longest wait for an EW's reply")
    probe_ms: int = Field(10, gt=0, description="silence of an EW that owes a reply: probe it")
    probe_misses: int = Field(3, gt=0, description="unanswered probes: its rows go elsewhere")
    hedge_factor: float = Field(
        8, ge=1, description="a reply later than its usual time by this factor is asked elsewhere"
    )
    hedge_floor_ms: float = Field(25, gt=0, description="but not earlier than this")
    hedge_ceiling_ms: float = Field(100, gt=0, description="nor later than this")
    stopped_grace_s: float = Field(
        10, gt=0, description="an unresponsive worker is replaced after this long"
    )


class ClusterConfig(Section):
    """Where the processes run."""

    backend: Literal["local", "slurm"] = "local"
    pin: Literal["auto", "none"] = Field("auto", description="bind local workers to CPUs")
    max_restarts: int = Field(
        5, ge=0, description="replacements of one worker within restart_window_s; then given up"
    )
    restart_window_s: float = Field(600, gt=0)
    fork_server: bool = Field(True, description="fork workers from processes that have imported")
    prefix: dict[str, Words] = Field(
        {},
        description="words before a worker's command, by worker or role, e.g. {ew: [nice]}, of a "
        "program that becomes the worker by exec; such workers are not forked",
    )
    tls: bool = Field(False, description="encrypt control connections, by a certificate of the run")
    start_timeout_s: float = Field(300, gt=0, description="all workers ready, or the run fails")
    drain_timeout_s: float = Field(30, ge=0, description="grace for running requests at a stop")
    head_lease_s: float = Field(
        120, gt=0, description="slurm: how long workers serve without a head, and wait for the next"
    )
    slurm: SlurmConfig = SlurmConfig()

    @field_validator("prefix")
    @classmethod
    def _by_worker_or_role(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        for key in value.keys() - set(Role):
            try:
                parse_worker_id(key)
            except ValueError:
                roles = ", ".join(Role)
                raise ValueError(f"{key!r} is neither a role ({roles}) nor a worker id") from None
        return value


class RunConfig(Section):
    """Where a run keeps its files."""

    root: str = Field("~/tarragon-runs", min_length=1, description="one directory per run inside")
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


class Config(Section):
    """The whole configuration; complete with `model.path` alone."""

    model: ModelConfig
    attention: AttentionConfig = AttentionConfig()
    experts: ExpertsConfig = ExpertsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    gateway: GatewayConfig = GatewayConfig()
    transport: TransportConfig = TransportConfig()
    detection: DetectionConfig = DetectionConfig()
    cluster: ClusterConfig = ClusterConfig()
    run: RunConfig = RunConfig()
