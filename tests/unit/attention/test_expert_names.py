"""Which tensors of a checkpoint an AW leaves on the disk (names as in published checkpoints)."""

import pytest

from tarragon_hpc.attention.expert_names import is_routed_expert


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.block_sparse_moe.experts.7.w1.weight",
        "model.layers.3.mlp.experts.255.gate_proj.weight",
        "model.layers.3.mlp.experts.255.gate_proj.weight_scale_inv",
        "model.layers.3.mlp.experts.12.up_proj.qweight",
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.experts.gate_up_proj_bias",
        "model.layers.1.mlp.experts.gate_up_proj_blocks",
        "model.layers.1.mlp.experts.down_proj_scales",
        "model.layers.1.mlp.experts.down_proj.weight",
        "transformer.blocks.1.ffn.experts.mlp.v1",
    ],
)
def test_routed_experts_are_left_out(name):
    assert is_routed_expert(name)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.0.block_sparse_moe.gate.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.1.mlp.experts.e_score_correction_bias",
        "model.layers.1.mlp.router.weight",
        "model.layers.1.mlp.shared_experts.gate_proj.weight",
        "model.layers.1.mlp.shared_expert.down_proj.weight",
        "model.layers.1.mlp.shared_expert_gate.weight",
        "model.layers.0.mlp.down_proj.weight",
        "lm_head.weight",
    ],
)
def test_everything_else_is_read(name):
    assert not is_routed_expert(name)
