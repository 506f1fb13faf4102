"""Sizes of the checkpoints that `tiny.py` writes, and how each family says them in config.json."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from tarragon_hpc.errors import UserError
from tarragon_hpc.models.spec import Dtype, Family

if TYPE_CHECKING:
    from collections.abc import Callable

FAMILIES: tuple[Family, ...] = get_args(Family)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

BOS, EOS, PAD = 0, 1, 2
MIN_VOCAB = 512

_MLA = {  # the sizes of DeepSeek's checkpoints: MLA kernels are built for these
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}


@dataclass(frozen=True, slots=True)
class Size:
    """A checkpoint's size. `ffn` is the expert's inner width; heads follow from `hidden`."""

    layers: int = 4
    hidden: int = 128
    ffn: int = 128
    experts: int = 8
    top_k: int = 2
    vocab: int = 1024
    max_len: int = 2048
    head_dim: int = 32
    kv_share: int = 2
    dtype: Dtype = "float32"

    @property
    def heads(self) -> int:
        return self.hidden // self.head_dim

    @property
    def kv_heads(self) -> int:
        return max(1, self.heads // self.kv_share)


PRESETS: dict[str, Size] = {
    "tiny": Size(),
    # ~430 M parameters in the shape of a Mixtral: the size the benchmarks use.
    "bench": Size(
        layers=8, hidden=1024, ffn=2048, experts=8, top_k=2, vocab=4096, head_dim=64, kv_share=4,
        dtype="bfloat16",
    ),
}  # fmt: skip

_FINE_GRAINED = ("qwen3-moe", "deepseek-v2", "deepseek-v3")


def parse_family(text: str) -> Family:
    """The family of that name. Raises UserError with the names there are."""
    for family in FAMILIES:
        if text == family:
            return family
    raise UserError(f"family {text!r}: allowed are {', '.join(FAMILIES)}")


def size_for(family: Family, preset: str = "tiny", **changes: int | str | None) -> Size:
    """The preset's size for a family with the given fields changed (None: keep).

    Raises UserError naming the option, its value and what is allowed.
    """
    if preset not in PRESETS:
        raise UserError(f"preset {preset!r}: allowed are {', '.join(PRESETS)}")
    base = PRESETS[preset]
    if preset == "tiny" and family in _FINE_GRAINED:  # many small experts, as in the real ones
        base = replace(base, experts=16, top_k=4, ffn=64)
    given = {k: v for k, v in changes.items() if v is not None}
    if "experts" in given and "top_k" not in given:
        given["top_k"] = min(base.top_k, int(given["experts"]))
    size = replace(base, **given)  # type: ignore[arg-type]
    _check(family, size)
    return size


def _check(family: Family, size: Size) -> None:
    step = 2 * size.head_dim
    limits: list[tuple[str, int, bool, str]] = [
        ("layers", size.layers, 1 <= size.layers <= 256, "1 to 256"),
        ("hidden", size.hidden, size.hidden >= step and size.hidden % step == 0,
         f"a multiple of {step}"),
        ("ffn", size.ffn, size.ffn >= 32 and size.ffn % 32 == 0, "a multiple of 32"),
        ("experts", size.experts, 1 <= size.experts <= 1024, "1 to 1024"),
        ("top-k", size.top_k, 1 <= size.top_k <= size.experts, f"1 to {size.experts} (experts)"),
        ("vocab", size.vocab, MIN_VOCAB <= size.vocab <= 262144, f"{MIN_VOCAB} to 262144"),
        ("max-len", size.max_len, 64 <= size.max_len <= 1 << 20, "64 to 1048576"),
    ]  # fmt: skip
    if family == "deepseek-v3":  # its gate scores a group by its two best experts
        limits.append(("experts", size.experts, size.experts >= 2, "at least 2 for deepseek-v3"))
    for name, value, fine, allowed in limits:
        if not fine:
            raise UserError(f"--{name} {value}: allowed is {allowed}")
    if size.dtype not in DTYPES:
        raise UserError(f"--dtype {size.dtype!r}: allowed are {', '.join(DTYPES)}")


def config_arguments(family: Family, size: Size) -> tuple[str, dict[str, Any]]:
    """(class prefix in transformers, arguments of its config class) of a checkpoint."""
    prefix, own = _BUILDERS[family](size)
    common = {
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "max_position_embeddings": size.max_len,
        "num_experts_per_tok": size.top_k,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "tie_word_embeddings": False,
    }
    return prefix, common | own


def _mixtral(size: Size) -> tuple[str, dict[str, Any]]:
    return "Mixtral", {
        "intermediate_size": size.ffn,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "num_local_experts": size.experts,
        "sliding_window": None,
    }


def _qwen3_moe(size: Size) -> tuple[str, dict[str, Any]]:
    return "Qwen3Moe", {
        "intermediate_size": 2 * size.hidden,
        "moe_intermediate_size": size.ffn,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "num_experts": size.experts,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _deepseek(size: Size) -> dict[str, Any]:
    groups = 4 if size.experts % 4 == 0 and size.experts >= 8 else 1
    kept = 2 if groups == 4 and size.top_k <= size.experts // 2 else groups
    return _MLA | {
        "intermediate_size": 2 * size.hidden,
        "moe_intermediate_size": size.ffn,
        "num_key_value_heads": size.heads,
        "n_routed_experts": size.experts,
        "n_shared_experts": 1,
        "n_group": groups,
        "topk_group": kept,
        "first_k_dense_replace": 1 if size.layers > 1 else 0,
    }


def _deepseek_v2(size: Size) -> tuple[str, dict[str, Any]]:
    return "DeepseekV2", _deepseek(size) | {
        "q_lora_rank": None,
        "topk_method": "group_limited_greedy",
        "routed_scaling_factor": 1.5,
        "norm_topk_prob": False,
    }


def _deepseek_v3(size: Size) -> tuple[str, dict[str, Any]]:
    return "DeepseekV3", _deepseek(size) | {
        "q_lora_rank": 64,
        # transformers knows no other gate; engines are told by these two, as in the released ones
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "num_mtp_layers": 0,
    }


def _gpt_oss(size: Size) -> tuple[str, dict[str, Any]]:
    kinds = ["sliding_attention", "full_attention"]
    return "GptOss", {
        "intermediate_size": size.ffn,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "num_local_experts": size.experts,
        "sliding_window": 32,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": size.max_len // 4,
        },
        "layer_types": [kinds[i % 2] for i in range(size.layers)],
    }


_BUILDERS: dict[Family, Callable[[Size], tuple[str, dict[str, Any]]]] = {
    "mixtral": _mixtral,
    "qwen3-moe": _qwen3_moe,
    "deepseek-v2": _deepseek_v2,
    "deepseek-v3": _deepseek_v3,
    "gpt-oss": _gpt_oss,
}
