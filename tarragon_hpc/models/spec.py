"""What the package needs to know about a checkpoint; `describe.py` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["mixtral", "qwen3-moe", "deepseek-v2", "deepseek-v3", "gpt-oss"]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """The expert FFN: down(act(gate(x), up(x))) with gate, up: [ffn, hidden], down: [hidden, ffn].

    activation "silu":      silu(g) * u
    activation "swigluoai": g' = min(g, limit), u' = clamp(u, -limit, limit);
                            (u' + 1) * g' * sigmoid(alpha * g')        (gpt-oss)
    """

    hidden: int
    ffn: int
    activation: Literal["silu", "swigluoai"] = "silu"
    bias: bool = False
    alpha: float = 1.702
    limit: float = 7.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One served checkpoint. `moe_layers` are the indices of the layers that have experts."""

    path: str
    family: Family
    architecture: str
    dtype: Dtype
    layers: int
    moe_layers: tuple[int, ...]
    experts: int
    top_k: int
    shape: ExpertShape
    vocab: int
    max_len: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    @property
    def expert_bytes(self) -> int:
        """Weights of one expert, all its layers, as they are served."""
        hidden, ffn = self.shape.hidden, self.shape.ffn
        numbers = 3 * hidden * ffn + (2 * ffn + hidden if self.shape.bias else 0)
        return len(self.moe_layers) * numbers * (4 if self.dtype == "float32" else 2)
