"""What vLLM is told and asked while an engine is built. Import it after `preload.preload()`."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from vllm.model_executor.models import ModelRegistry
from vllm.tokenizers import get_tokenizer

from tarragon_hpc.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tarragon_hpc.config import Config
    from tarragon_hpc.errors import TarragonError

log = logging.getLogger(__name__)


def cpu_threads(config: Config, cpus: Sequence[int] | None) -> int:
    """OpenMP threads of the engine: as configured, or one per CPU it is bound to, or a share."""
    if config.attention.threads is not None:
        return config.attention.threads
    if cpus is not None:
        return len(cpus)
    return max(1, len(os.sched_getaffinity(0)) // config.attention.workers)


def load_model_class(architecture: str) -> None:
    """Import a model's class here and now. Raises ClusterError if vLLM has none.

    vLLM would first inspect it in a process of its own, to keep this one free of CUDA, which takes
    as long as all its imports. It also has to be there for `remote_experts` to replace its parts.
    """
    if architecture not in ModelRegistry.models:
        raise ClusterError(f"this vLLM has no model class for {architecture}")
    model_class = ModelRegistry.models[architecture].load_model_cls()
    ModelRegistry.register_model(architecture, model_class)


def load_tokenizer(path: str) -> Any | None:
    """The tokenizer that vLLM would have: who ends a sequence, and what tokens a grammar allows."""
    try:
        return get_tokenizer(path)
    except (OSError, ValueError) as error:
        log.warning("no tokenizer in %s, so no end-of-sequence token: %s", path, one_line(error))
        return None


def kv_bytes_per_token(vllm_config: Any) -> int:
    """K and V of one token in all layers, as if none had a sliding window."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    heads = 1 if model.use_mla else 2 * model.get_num_kv_heads(parallel)
    layers = model.get_num_layers(parallel)
    return int(layers * heads * model.get_head_size() * model.dtype.itemsize)


def explain(error: Exception) -> TarragonError:
    """Why vLLM cannot be set up; in the words of our configuration where that is to blame."""
    text = one_line(error)
    if "kv cache" in text.lower():
        cause, _, _ = text.partition(" Try increasing")
        return ConfigError("attention.kv_cache", f"{cause} Raise it, or lower model.max_model_len.")
    return ClusterError(f"vLLM cannot be set up: {text}")


def one_line(error: Exception) -> str:
    """What it says, without the repr of all settings that pydantic adds."""
    text = str(error)
    if isinstance(error, ValidationError):
        text = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
    return " ".join(text.split())
