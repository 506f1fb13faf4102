"""What the supported model families have in common, and where each differs.

Sources: the `configuration_*.py` and `modeling_*.py` of transformers, and vLLM's model files for
which layers have experts (the AW's engine decides that, so its rule is the one that counts).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.models.fields import Fields
    from tarragon_hpc.models.spec import Family


def _every_layer(config: Fields, layers: int) -> tuple[int, ...]:
    return tuple(range(layers))


def _qwen3_moe_layers(config: Fields, layers: int) -> tuple[int, ...]:
    dense = set(config.integers("mlp_only_layers"))
    step = config.integer("decoder_sparse_step", default=1)
    return tuple(i for i in range(layers) if i not in dense and (i + 1) % step == 0)


def _deepseek_layers(first_dense: int) -> Callable[[Fields, int], tuple[int, ...]]:
    def moe_layers(config: Fields, layers: int) -> tuple[int, ...]:
        first = config.integer("first_k_dense_replace", least=0, default=first_dense)
        step = config.integer("moe_layer_freq", default=1)
        return tuple(i for i in range(layers) if i >= first and i % step == 0)

    return moe_layers


@dataclass(frozen=True, slots=True)
class FamilyRules:
    """How to read a family's config.json and name its expert tensors.

    `block` is the module that holds the experts; `names` are an expert's gate, up and down
    projections when every expert is stored by itself.
    """

    family: Family
    model_type: str
    architecture: str
    ffn_key: str
    moe_layers: Callable[[Fields, int], tuple[int, ...]]
    block: str = "mlp"
    names: tuple[str, str, str] = field(default=("gate_proj", "up_proj", "down_proj"))

    @property
    def gpt_oss(self) -> bool:
        """Experts with biases, a clamped SwiGLU, and a layout of their own."""
        return self.family == "gpt-oss"

    def experts_prefix(self, layer: int) -> str:
        """What the names of a layer's expert tensors start with."""
        return f"model.layers.{layer}.{self.block}.experts"


# Whatever the family, these keys hold the number of experts (transformers 5 writes
# num_local_experts where earlier releases and the published checkpoints have num_experts).
EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")

_ALL = (
    FamilyRules(
        "mixtral",
        "mixtral",
        "MixtralForCausalLM",
        "intermediate_size",
        _every_layer,
        block="block_sparse_moe",
        names=("w1", "w3", "w2"),
    ),
    FamilyRules(
        "qwen3-moe",
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        "moe_intermediate_size",
        _qwen3_moe_layers,
    ),
    FamilyRules(
        "deepseek-v2",
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        "moe_intermediate_size",
        _deepseek_layers(first_dense=0),
    ),
    FamilyRules(
        "deepseek-v3",
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        "moe_intermediate_size",
        _deepseek_layers(first_dense=3),
    ),
    FamilyRules(
        "gpt-oss",
        "gpt_oss",
        "GptOssForCausalLM",
        "intermediate_size",
        _every_layer,
    ),
)

BY_MODEL_TYPE = {rules.model_type: rules for rules in _ALL}
BY_FAMILY = {rules.family: rules for rules in _ALL}
