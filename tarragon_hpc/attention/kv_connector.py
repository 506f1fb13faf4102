"""vLLM's KV connector, by which the engine's KV cache is checkpointed and restored.

vLLM makes two of them, one for its scheduler and one for its model runner. Both are in this
process and belong to the same engine thread; both do what `Checkpoints` says.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorTransferResults,
    SupportsHMA,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tarragon_hpc.attention.checkpoints import Checkpoints

_current: Checkpoints | None = None


@contextlib.contextmanager
def checkpointing(checkpoints: Checkpoints | None) -> Iterator[None]:
    """Connectors built in this context serve this engine's checkpoints; None: there are none."""
    global _current
    _current = checkpoints
    try:
        yield
    finally:
        _current = None


class TarragonConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """See the module's text; the methods are described by their base class."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        assert _current is not None
        self._checkpoints = _current
        self._checkpoints.groups = kv_cache_config.kv_cache_groups
        self._layers = vllm_config.compilation_config.static_forward_context

    @property
    def requires_kv_delivery(self) -> bool:
        """A copy that was not made is made later: nothing is owed to anybody."""
        return False

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """A graph over a whole step would leave no place to copy a layer's rows."""
        return True

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str | None:
        """On GPUs, all heads of a token next to each other: one row is one piece of memory."""
        return None if vllm_config.device_config.device_type == "cpu" else "LBNHC"

    # For the scheduler.

    def on_new_request(self, request: Any) -> None:
        self._checkpoints.on_new(request)

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        matched = self._checkpoints.to_restore(request, num_computed_tokens)
        return matched, matched > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens > 0:
            self._checkpoints.on_allocated(request, blocks.get_block_ids(), num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        self._checkpoints.plan(scheduler_output)
        return KVConnectorMetadata()

    def request_finished(self, request: Any, block_ids: Any) -> tuple[bool, None]:
        self._checkpoints.on_finished(request)
        return False, None

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, None]:
        self._checkpoints.on_finished(request)
        return False, None

    # For the model runner.

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        self._checkpoints.on_caches(kv_caches, self._layers)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Loads were begun when the step was scheduled, so that they are there when it is over."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are asynchronous: no layer has to wait."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        self._checkpoints.on_layer(layer_name)

    def wait_for_save(self) -> None:
        self._checkpoints.on_step_end()

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        finished, failed = self._checkpoints.take_loads()
        return KVConnectorTransferResults(finished_recving=finished, failed_recving=failed)
