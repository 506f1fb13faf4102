"""Configuration → arguments of vLLM's engine. Pure; imports no vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tarragon_hpc.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tarragon_hpc.config import Config
    from tarragon_hpc.models.spec import ModelSpec

DeviceKind = Literal["cpu", "cuda"]

_MIB = 1 << 20
_CPU_KV_CACHE = 512 * _MIB

_CONNECTOR = {
    "kv_connector": "TarragonConnector",
    "kv_connector_module_path": "tarragon_hpc.attention.kv_connector",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}

# A graph that held these would replay without our code, or bake a layer's name in.
_OUTSIDE_GRAPHS = (
    "vllm::unified_kv_cache_update",
    "vllm::unified_mla_kv_cache_update",
    "vllm::moe_forward",
    "vllm::moe_forward_shared",
)


def context_length(config: Config, spec: ModelSpec) -> int:
    """Tokens of prompt and output together that one sequence may have."""
    return config.model.max_model_len or spec.max_len


def engine_arguments(
    config: Config,
    spec: ModelSpec,
    device: DeviceKind,
    load_format: str,
    attention_ops: Iterable[str] = (),
) -> dict[str, Any]:
    """Keyword arguments of vLLM's EngineArgs.

    `attention_ops` are the ops that vLLM itself leaves outside piecewise graphs. Raises ConfigError
    for what vLLM would refuse less clearly.
    """
    _check(config, spec, device)
    attention = config.attention
    return {
        "model": spec.path,
        "dtype": spec.dtype,
        "max_model_len": context_length(config, spec),
        "seed": config.model.seed,
        "load_format": load_format,
        "use_tqdm_on_load": False,
        # Text is the gateway's business. The tokens that end a sequence: see engine.py.
        "skip_tokenizer_init": True,
        "max_num_seqs": attention.max_num_seqs,
        "max_num_batched_tokens": attention.max_num_batched_tokens,
        "enable_chunked_prefill": True,
        # What was computed without some experts must not be found by other requests.
        "enable_prefix_caching": attention.prefix_caching and config.experts.on_missing != "mask",
        "block_size": attention.block_size,
        "kv_cache_memory_bytes": attention.kv_cache,
        "gpu_memory_utilization": attention.gpu_memory_fraction,
        "async_scheduling": False,
        "disable_log_stats": True,
        "enforce_eager": attention.cuda_graphs == "none",
        "compilation_config": _compilation(config, device, attention_ops),
        "kv_transfer_config": _CONNECTOR if config.checkpoint.stores else None,
    }


def default_kv_cache(token_bytes: int, max_len: int) -> int:
    """Bytes of KV cache on a CPU where the configuration says none.

    512 MiB, or as much as one sequence of the full length needs, with room for partly filled
    blocks: less would not start. token_bytes: K and V of one token in all layers.
    """
    return max(_CPU_KV_CACHE, token_bytes * max_len * 9 // 8)


def _check(config: Config, spec: ModelSpec, device: DeviceKind) -> None:
    attention, length = config.attention, config.model.max_model_len
    if length is not None and length > spec.max_len:
        raise ConfigError(
            "model.max_model_len", f"{length}: must be at most the checkpoint's, {spec.max_len}"
        )
    if attention.max_num_batched_tokens < attention.max_num_seqs:
        raise ConfigError(
            "attention.max_num_batched_tokens",
            f"{attention.max_num_batched_tokens}: must be at least attention.max_num_seqs, "
            f"{attention.max_num_seqs}",
        )
    if device == "cpu" and attention.cuda_graphs != "none":
        raise ConfigError(
            "attention.cuda_graphs", f"{attention.cuda_graphs!r}: needs a GPU; allowed here: none"
        )
    if device == "cpu" and attention.block_size is not None and attention.block_size % 32:
        raise ConfigError(
            "attention.block_size", f"{attention.block_size}: must be a multiple of 32 on a CPU"
        )


def _compilation(
    config: Config, device: DeviceKind, attention_ops: Iterable[str]
) -> dict[str, Any]:
    if device == "cpu":
        # vLLM 0.32's native rotary_embedding gives wrong results with MLA on CPUs.
        return {"custom_ops": ["all", "-rotary_embedding"]}
    if config.attention.cuda_graphs == "piecewise":  # not run on a GPU yet
        return {
            "cudagraph_mode": "PIECEWISE",
            "splitting_ops": [*attention_ops, *_OUTSIDE_GRAPHS],
        }
    return {}
