"""Read what we need to know about a checkpoint from its directory; no torch, no transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from tarragon_hpc.errors import ModelError
from tarragon_hpc.models.checkpoint import Checkpoint, open_checkpoint
from tarragon_hpc.models.expert_layout import find_layout, weight_names
from tarragon_hpc.models.families import BY_MODEL_TYPE, EXPERT_KEYS, FamilyRules
from tarragon_hpc.models.fields import Fields, read_json
from tarragon_hpc.models.quantization import read_quantization
from tarragon_hpc.models.spec import Dtype, ExpertShape, ModelSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def describe(path: str | Path, dtype: Literal["auto"] | Dtype = "auto") -> ModelSpec:
    """The facts about the checkpoint in a directory.

    `dtype` is the arithmetic asked for; "auto" takes the checkpoint's own. The tensors of all
    experts must be there by name; their contents are not read. Raises ModelError with one line
    that names the path and the reason.
    """
    root = Path(path).expanduser()
    config = read_config(root)
    rules = _rules(config)
    layers = config.integer("num_hidden_layers")
    experts = config.integer(*EXPERT_KEYS)
    top_k = config.integer("num_experts_per_tok", "experts_per_token")
    if top_k > experts:
        raise config.wrong(("num_experts_per_tok",), f"is {top_k}, but there are {experts} experts")
    moe_layers = rules.moe_layers(config, layers)
    if not moe_layers:
        raise ModelError(f"{config.path}: is a dense model: none of its layers has experts")
    read_quantization(config, rules)
    checkpoint = open_checkpoint(root)
    _check_tensors(checkpoint, rules, moe_layers, experts)
    generation = _optional(root / "generation_config.json")
    eos = config.integers("eos_token_id") + generation.integers("eos_token_id")
    bos = config.integers("bos_token_id") or generation.integers("bos_token_id")
    return ModelSpec(
        path=str(root.resolve()),
        family=rules.family,
        architecture=_architecture(config, rules),
        dtype=_own_dtype(config, checkpoint) if dtype == "auto" else dtype,
        layers=layers,
        moe_layers=moe_layers,
        experts=experts,
        top_k=top_k,
        shape=_shape(config, rules),
        vocab=config.integer("vocab_size"),
        max_len=_max_len(config, _optional(root / "tokenizer_config.json")),
        eos_token_ids=tuple(dict.fromkeys(eos)),
        bos_token_id=bos[0] if bos else None,
    )


def read_config(root: Path) -> Fields:
    """The config.json of a checkpoint directory."""
    if not root.is_dir():
        problem = "is a file" if root.exists() else "no such directory"
        raise ModelError(f"{root}: {problem}; model.path must be the directory of a checkpoint")
    path = root / "config.json"
    if not path.is_file():
        raise ModelError(f"{root}: has no config.json; model.path must be a checkpoint's directory")
    return Fields(path, read_json(path))


def _optional(path: Path) -> Fields:
    return Fields(path, read_json(path) if path.is_file() else {})


def _rules(config: Fields) -> FamilyRules:
    model_type = config.text("model_type")
    supported = ", ".join(BY_MODEL_TYPE)
    rules = BY_MODEL_TYPE.get(model_type)
    if config.raw(*EXPERT_KEYS) in (None, 0):
        known = "" if rules else f" (model_type {model_type})"
        raise ModelError(
            f"{config.path}: is a dense model{known}, it has no experts to serve apart; "
            f"supported: {supported}"
        )
    if rules is None:
        raise config.wrong(("model_type",), f"{model_type!r} is not supported; one of: {supported}")
    return rules


def _architecture(config: Fields, rules: FamilyRules) -> str:
    """Published checkpoints name exactly one; a classifier of the same family cannot generate."""
    value = config.raw("architectures")
    if value is None:
        return rules.architecture
    if value != [rules.architecture]:
        raise config.wrong(("architectures",), f"is {value!r}; expected [{rules.architecture!r}]")
    return rules.architecture


def _shape(config: Fields, rules: FamilyRules) -> ExpertShape:
    activation = config.text("hidden_act", default="silu")
    if activation != "silu":
        raise config.wrong(("hidden_act",), f"is {activation!r}; only 'silu' is supported")
    hidden, ffn = config.integer("hidden_size"), config.integer(rules.ffn_key)
    if not rules.gpt_oss:
        return ExpertShape(hidden, ffn)
    return ExpertShape(
        hidden,
        ffn,
        activation="swigluoai",
        bias=True,
        alpha=config.number("swiglu_alpha", default=1.702),
        limit=config.number("swiglu_limit", default=7.0),
    )


def _own_dtype(config: Fields, checkpoint: Checkpoint) -> Dtype:
    """The dtype in config.json, or that of the embedding where it says none (gpt-oss)."""
    name = config.text("dtype", "torch_dtype", default="none").removeprefix("torch.")
    if name == "none":
        stored = checkpoint.info("model.embed_tokens.weight").dtype
        name = _STORED.get(stored, stored)
    if name not in get_args(Dtype):
        allowed = ", ".join(get_args(Dtype))
        raise config.wrong(
            ("dtype", "torch_dtype"), f"is {name!r}; set model.dtype to one of: {allowed}"
        )
    return cast("Dtype", name)


def _max_len(config: Fields, tokenizer: Fields) -> int:
    """Tokens of context, as vLLM derives them (`_get_and_verify_max_len` in vllm/config/model.py).

    The factor of a YaRN scaling is already in max_position_embeddings; that of the plain scalings
    is not.
    """
    length = float(config.integer("max_position_embeddings"))
    limit = tokenizer.number("model_max_length", default=length)
    length = min(length, limit)
    rope = config.section("rope_parameters", "rope_scaling")
    if rope.text("rope_type", "type", default="default") in ("linear", "dynamic"):
        length *= rope.number("factor", default=1.0)
    return int(length)


def _check_tensors(
    checkpoint: Checkpoint, rules: FamilyRules, moe_layers: Sequence[int], experts: int
) -> None:
    """All experts of all layers must be there; an interrupted download is found here, not later."""
    for layer in moe_layers:
        layout = find_layout(checkpoint, rules, layer)
        if layout is None:
            raise ModelError(
                f"{checkpoint.root}: has no expert tensors for layer {layer}, "
                f"which has {experts} experts by its config.json"
            )
        for expert in range(experts):
            for name in weight_names(rules, layout, layer, expert):
                if name not in checkpoint:
                    raise ModelError(f"{checkpoint.root}: tensor {name!r} is missing")
