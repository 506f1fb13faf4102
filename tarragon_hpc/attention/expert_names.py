"""Names of the tensors that an AW leaves on the disk."""

from __future__ import annotations

import re

# `experts.7.w1.weight`, `experts.gate_up_proj_blocks`, `experts.mlp.v1`; but neither the router
# nor what a model keeps beside the weights, such as `experts.e_score_correction_bias`.
_ROUTED_EXPERT = re.compile(
    r"\.experts\.(\d+\.|mlp\.|(w1|w2|w3|w13|gate_up_proj|gate_proj|up_proj|down_proj)(_|\.|$))"
)


def is_routed_expert(name: str) -> bool:
    """Whether a tensor of a checkpoint belongs to a routed expert, by its name."""
    return _ROUTED_EXPERT.search(name) is not None
