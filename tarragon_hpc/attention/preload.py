"""Everything a fresh AW imports, in one place: a process that forks AWs can have it ready.

Nothing here starts a thread or touches a GPU.
"""

from __future__ import annotations

import importlib
import logging
import os

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process
    "VLLM_CONFIGURE_LOGGING": "0",  # and logs where this process does
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Would override the configuration.
_UNWANTED = ("VLLM_CPU_KVCACHE_SPACE", "VLLM_PLUGINS")


def preload() -> None:
    """Set what vLLM reads from the environment, then import it and what it imports later on.

    Must come before any other import of vLLM in the process. Takes seconds.
    """
    os.environ.update(_ENVIRONMENT)
    for name in _UNWANTED:
        os.environ.pop(name, None)
    logging.getLogger("vllm").setLevel(logging.ERROR)
    importlib.import_module("tarragon_hpc.attention.engine")
    _compile_nothing_on_cpus()


def _compile_nothing_on_cpus() -> None:
    """vLLM compiles a few helpers when they are first called, enforce_eager or not.

    On a CPU that means a C++ compiler and half a minute in which the first request with
    log probabilities, or the first of all for DeepSeek models, holds up every other.
    """
    import torch
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        torch._dynamo.config.disable = True
