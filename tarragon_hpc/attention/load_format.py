"""The load format of AWs: safetensors, without the tensors of routed experts.

They are skipped by name, before a byte of them is read: most of a checkpoint stays on the disk.
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from tarragon_hpc.attention.expert_names import is_routed_expert

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

LOAD_FORMAT = "tarragon_aw"


class AttentionLoader(DefaultModelLoader):  # type: ignore[misc]
    """Reads what an AW computes with: attention, norms, routers, shared experts, embeddings."""

    def __init__(self, load_config: Any) -> None:
        load_config = copy.copy(load_config)
        load_config.load_format = "safetensors"
        super().__init__(load_config)

    def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, torch.Tensor]]:
        _, files, _, _ = self._prepare_weights(
            source.model_or_path,
            source.subfolder,
            source.revision,
            source.fall_back_to_pt,
            source.allow_patterns_overrides,
        )
        for file in sorted(files):
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    if not is_routed_expert(name):
                        yield source.prefix + name, tensors.get_tensor(name)


@functools.cache
def register() -> None:
    """Make the load format known to vLLM, once per process."""
    register_model_loader(LOAD_FORMAT)(AttentionLoader)
