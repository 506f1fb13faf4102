"""Quantised checkpoints: which formats are read, and how config.json announces them.

The experts of such a checkpoint are dequantised when an EW loads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tarragon_hpc.models.families import FamilyRules
    from tarragon_hpc.models.fields import Fields

ALLOWED = "unquantised, fp8 (e4m3) with weight_block_size, or mxfp4 (gpt-oss)"


@dataclass(frozen=True, slots=True)
class Quantization:
    """How expert weights are stored.

    mxfp4: blocks of 32 four-bit values with a shared power-of-two scale (OCP MX v1.0), gpt-oss.
    fp8:   e4m3 with one float scale per `block` = (rows, columns), DeepSeek-V3 and others.
    """

    method: Literal["mxfp4", "fp8"]
    block: tuple[int, int] = (1, 32)


def read_quantization(config: Fields, rules: FamilyRules) -> Quantization | None:
    """What `quantization_config` says. Raises ModelError for a format that is not supported."""
    if config.raw("quantization_config") is None:
        return None
    section = config.section("quantization_config")
    method = section.text("quant_method", default="unnamed")
    if method == "mxfp4" and rules.gpt_oss:
        return Quantization("mxfp4")
    if method == "fp8" and not rules.gpt_oss:
        block = section.integers("weight_block_size")
        if len(block) == 2 and min(block) > 0 and section.text("fmt", default="e4m3") == "e4m3":
            return Quantization("fp8", (block[0], block[1]))
        method = "fp8 without weight_block_size, or not e4m3"
    raise config.wrong(
        ("quantization_config",), f"({method}) is not supported here; allowed: {ALLOWED}"
    )
