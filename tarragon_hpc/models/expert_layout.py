"""How a layer's routed experts are laid out in a checkpoint."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

    from tarragon_hpc.models.families import FamilyRules


class Layout(Enum):
    """E experts, H hidden, F ffn; weights are [out, in] unless said otherwise.

    EACH:    three tensors per expert: gate [F, H], up [F, H], down [H, F]; published checkpoints
             and what transformers writes by default.
    FUSED:   gate_up_proj [E, 2F, H] with the gate's rows first, down_proj [E, H, F]; what
             transformers 5 holds in memory and writes with `save_original_format=False`.
    GPT_OSS: [in, out]: gate_up_proj [E, H, 2F] with gate and up columns alternating, down_proj
             [E, F, H]; biases [E, 2F] alternating, [E, H].
    MXFP4:   as published for gpt-oss, [out, in] again: gate_up_proj_blocks [E, 2F, H/32, 16] with
             gate and up rows alternating, down_proj_blocks [E, H, F/32, 16], `_scales` without the
             last dimension; biases as above.
    """

    EACH = "each"
    FUSED = "fused"
    GPT_OSS = "gpt-oss"
    MXFP4 = "mxfp4"


def find_layout(names: Container[str], rules: FamilyRules, layer: int) -> Layout | None:
    """The layout of a layer by the tensor names of the checkpoint; None if it has no experts."""
    fused = fused_prefix(layer)
    if rules.gpt_oss:
        if f"{fused}.gate_up_proj_blocks" in names:
            return Layout.MXFP4
        return Layout.GPT_OSS if f"{fused}.gate_up_proj" in names else None
    if f"{fused}.gate_up_proj" in names:
        return Layout.FUSED
    # Any expert will do: which ones are missing is for the caller to say.
    prefix = rules.experts_prefix(layer)
    return Layout.EACH if f"{prefix}.0.{rules.names[0]}.weight" in names else None


def fused_prefix(layer: int) -> str:
    """What the names of a layer's tensors start with when all experts share them."""
    return f"model.layers.{layer}.mlp.experts"


def weight_names(rules: FamilyRules, layout: Layout, layer: int, expert: int) -> tuple[str, ...]:
    """Names of the tensors that hold an expert's weights (not their scales).

    EACH: gate, up, down. FUSED: gate_up, down. The others: gate_up, its bias, down, its bias.
    """
    fused = fused_prefix(layer)
    match layout:
        case Layout.EACH:
            prefix = f"{rules.experts_prefix(layer)}.{expert}"
            gate, up, down = rules.names
            return f"{prefix}.{gate}.weight", f"{prefix}.{up}.weight", f"{prefix}.{down}.weight"
        case Layout.FUSED:
            return f"{fused}.gate_up_proj", f"{fused}.down_proj"
        case Layout.GPT_OSS:
            gate_up, down = f"{fused}.gate_up_proj", f"{fused}.down_proj"
        case Layout.MXFP4:
            gate_up, down = f"{fused}.gate_up_proj_blocks", f"{fused}.down_proj_blocks"
    return gate_up, f"{fused}.gate_up_proj_bias", down, f"{fused}.down_proj_bias"
