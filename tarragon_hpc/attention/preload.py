"""Everything a fresh AW imports, in one place: a process that forks AWs can have it ready.

Nothing here starts a thread or touches a GPU.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process
    "VLLM_CONFIGURE_LOGGING": "0",  # and logs where this process does
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "GLOO_SOCKET_IFNAME": "lo",  # no group has a member elsewhere; see `deaf`
    "TOKENIZERS_PARALLELISM": "false",
}
# Would override the configuration.
_UNWANTED = ("VLLM_CPU_KVCACHE_SPACE", "VLLM_PLUGINS")


# What vLLM imports while it builds an engine.
_LATER = (
    "transformers.integrations.mistral.tokenizer",
    "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.renderers.hf",
    "vllm.tokenizers.hf",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.sample.sampler",
)
_WORKER = {True: "vllm.v1.worker.cpu_worker", False: "vllm.v1.worker.gpu_worker"}
_CPU_LATER = ("vllm.utils.cpu_triton_utils", "vllm.v1.attention.backends.cpu_attn")


def preload() -> None:
    """Set what vLLM reads from the environment, then import it and what it imports later on.

    Must come before any other import of vLLM in the process. Takes seconds.
    """
    os.environ.update(_ENVIRONMENT)
    for name in _UNWANTED:
        os.environ.pop(name, None)
    logging.getLogger("vllm").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")
    importlib.import_module("tarragon_hpc.attention.engine")
    for name in _LATER:
        importlib.import_module(name)
    on_cpu = importlib.import_module("vllm.platforms").current_platform.is_cpu()
    importlib.import_module(_WORKER[on_cpu])
    if on_cpu:
        for name in _CPU_LATER:
            importlib.import_module(name)
        _compile_nothing()


def preload_model(architecture: str) -> None:
    """After `preload`, for a process that knows what it will serve: the code of the model."""
    importlib.import_module("tarragon_hpc.attention.vllm_setup").load_model_class(architecture)


def _compile_nothing() -> None:
    """vLLM compiles a few helpers when they are first called, enforce_eager or not.

    On a CPU that means a C++ compiler and half a minute in which the first request with
    log probabilities, or the first of all for DeepSeek models, holds up every other.
    """
    import torch

    torch._dynamo.config.disable = True
