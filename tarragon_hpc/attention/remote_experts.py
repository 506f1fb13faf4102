"""vLLM's routed experts, replaced by calls to the expert workers.

vLLM builds a MoE layer from a router, shared experts and a `RoutedExperts` module that owns the
weights. Only the last is replaced, through vLLM's own hook for layers from outside its tree
(`PluggableLayer.register_oot`), so that routing, shared experts and scaling stay as they are. The
replacement ignores the checkpoint's quantisation: no expert weight exists here to be quantised.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
from vllm.model_executor.layers.fused_moe.config import FUSED_MOE_UNQUANTIZED_CONFIG
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.runner.shared_experts import SharedExpertsOrder
from vllm.model_executor.models.utils import extract_layer_index

from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tarragon_hpc.attention.expert_call import ExpertCalls
    from tarragon_hpc.models.spec import ModelSpec


class RemoteExpertsMethod(FusedMoEMethodBase):  # type: ignore[misc]
    """How a MoE layer runs experts that live elsewhere; it has no weights."""

    def __init__(self, moe: Any, layer: int, calls: ExpertCalls) -> None:
        super().__init__(moe)
        self._layer = layer
        self._calls = calls

    def create_weights(self, *args: Any, **kwargs: Any) -> None:
        """Allocates nothing."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Nothing was loaded."""

    def get_fused_moe_quant_config(self, layer: Any) -> Any:
        """Not None, or vLLM asks again at every call."""
        return FUSED_MOE_UNQUANTIZED_CONFIG

    def maybe_roundup_sizes(
        self, hidden_size: int, intermediate_size: int, *args: Any, **kwargs: Any
    ) -> tuple[int, int]:
        """No local kernel wants padding: rows travel as the model makes them."""
        return hidden_size, intermediate_size

    @property
    def topk_indices_dtype(self) -> torch.dtype:
        """What the router hands to `apply`."""
        return torch.int32

    @property
    def mk_can_overlap_shared_experts(self) -> bool:
        """Has vLLM leave the shared experts to `apply` (MK_INTERNAL_OVERLAPPED)."""
        return True

    def apply(
        self,
        layer: Any,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any | None,
        shared_experts_input: torch.Tensor | None,
    ) -> torch.Tensor:
        """sum_k w_k E_k(x) for x [T, H]; the shared experts run while the rows are away."""
        call = self._calls.dispatch(self._layer, x, topk_ids, topk_weights)
        if shared_experts is not None:
            shared_experts(shared_experts_input, SharedExpertsOrder.MK_INTERNAL_OVERLAPPED)
        return self._calls.combine(call, x)


class _Remote:
    """Mixed into every class of routed experts before it is built."""

    expert_calls: ClassVar[ExpertCalls]

    def _get_quant_method(self, prefix: str, quant_config: Any, moe_config: Any) -> Any:
        return RemoteExpertsMethod(moe_config, extract_layer_index(prefix), self.expert_calls)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[str]:
        """Loads nothing, whatever the checkpoint offers."""
        for _ in weights:
            pass
        return iter(())


@contextlib.contextmanager
def remote_experts(calls: ExpertCalls) -> Iterator[None]:
    """Models built in this context have no experts of their own but `calls`.

    vLLM looks replacements up by the name of the class it would build, so every class of routed
    experts is registered, that is those of the model modules imported so far.
    """
    names = []
    try:
        for base in dict.fromkeys(_family(RoutedExperts)):
            remote = type(f"Remote{base.__name__}", (_Remote, base), {"expert_calls": calls})
            PluggableLayer.register_oot(remote, name=base.__name__)
            names.append(base.__name__)
        yield
    finally:
        for name in names:
            del op_registry_oot[name]


def _family(base: type) -> list[type]:
    """A class and all its descendants, except replacements made for an earlier engine."""
    if issubclass(base, _Remote):
        return []
    return [base, *(c for child in base.__subclasses__() for c in _family(child))]


def check_coverage(vllm_config: Any, spec: ModelSpec) -> None:
    """Raise ClusterError unless every MoE layer of a built model runs on the expert workers.

    Also if a layer asks for something that the expert workers would not do.
    """
    compilation = vllm_config.compilation_config
    layers = {
        extract_layer_index(name): compilation.static_forward_context[name]
        for name in compilation.static_all_moe_layers
    }
    missing = set(spec.moe_layers) ^ set(layers)
    if missing:
        raise ClusterError(
            f"{spec.path}: vLLM has experts in layers {sorted(layers)}, the checkpoint in "
            f"{list(spec.moe_layers)}; this model's MoE layers cannot be served"
        )
    for index, runner in layers.items():
        for fact, found, wanted in _facts(runner, spec):
            if found != wanted:
                raise ClusterError(
                    f"{spec.path}: layer {index}: {fact} is {found!r} in vLLM, but the expert "
                    f"workers can only serve {wanted!r}"
                )


def _facts(runner: Any, spec: ModelSpec) -> Iterator[tuple[str, Any, Any]]:
    """(what, as vLLM built it, as the expert workers do it) for one MoE layer."""
    routed = runner.routed_experts
    yield "experts' method", type(routed.quant_method).__name__, RemoteExpertsMethod.__name__
    # The router's correction bias is registered here too; vLLM shares the parameter.
    weights = [name for name, _ in routed.named_parameters() if name != "e_score_correction_bias"]
    yield "list of the experts' weights", weights, []
    yield "number of experts", routed.global_num_experts, spec.experts
    yield "number of experts held", routed.local_num_experts, spec.experts
    yield "top_k", routed.top_k, spec.top_k
    yield "hidden size of the experts", routed.hidden_size, spec.shape.hidden
    yield "activation", routed.activation.value, spec.shape.activation
    yield "bias", routed.moe_config.has_bias, spec.shape.bias
    yield "apply_router_weight_on_input", routed.apply_router_weight_on_input, False
    yield "swiglu_limit", routed.swiglu_limit, None
    yield "use of zero experts", type(runner.router).__name__ == "ZeroExpertRouter", False
