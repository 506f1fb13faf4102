"""Facts read from config.json, in every spelling there is, and one line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tarragon_hpc.errors import ModelError
from tarragon_hpc.models.describe import describe
from tarragon_hpc.models.presets import FAMILIES, size_for
from tarragon_hpc.models.spec import ExpertShape

ZERO = np.zeros((1, 1), np.float32)

# As the checkpoints on the hub have it (the fields that matter), smaller.
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 8,
    "intermediate_size": 16,
    "hidden_act": "silu",
    "num_hidden_layers": 2,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "max_position_embeddings": 32768,
    "vocab_size": 100,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QWEN3 = {
    **MIXTRAL,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 2,
    "num_local_experts": None,
    "moe_intermediate_size": 4,
    "num_hidden_layers": 6,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [3],
}
DEEPSEEK_V2 = {
    **MIXTRAL,
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "num_local_experts": None,
    "n_routed_experts": 2,
    "moe_intermediate_size": 4,
    "num_hidden_layers": 5,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 2,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
}
DEEPSEEK_V3 = {
    **DEEPSEEK_V2,
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
}
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": 32,
    "intermediate_size": 32,
    "hidden_act": "silu",
    "num_hidden_layers": 2,
    "num_local_experts": 2,
    "experts_per_token": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 131072,
    "vocab_size": 100,
    "eos_token_id": 9,
    "swiglu_limit": 6.5,
    "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "truncate": False},
    "quantization_config": {
        "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
        "quant_method": "mxfp4",
    },
}


def each(layers, experts=2, block="mlp", names=("gate_proj", "up_proj", "down_proj")):
    return {
        f"model.layers.{layer}.{block}.experts.{e}.{name}.weight": ZERO
        for layer in layers
        for e in range(experts)
        for name in names
    }


MIXTRAL_TENSORS = each([0, 1], block="block_sparse_moe", names=("w1", "w2", "w3"))


def published_gpt_oss():
    tensors = {"model.embed_tokens.weight": ("BF16", np.zeros((1, 1), np.uint16))}
    for layer in range(2):
        for name in ("gate_up_proj", "down_proj"):
            for part in ("_blocks", "_scales", "_bias"):
                tensors[f"model.layers.{layer}.mlp.experts.{name}{part}"] = ZERO
    return tensors


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes(family, tiny_models):
    directory = tiny_models(family)
    spec = describe(directory)
    size = size_for(family)
    assert (spec.family, spec.layers, spec.vocab) == (family, size.layers, size.vocab)
    assert (spec.experts, spec.top_k, spec.max_len) == (size.experts, size.top_k, size.max_len)
    assert (spec.shape.hidden, spec.shape.ffn) == (size.hidden, size.ffn)
    assert (spec.dtype, spec.path) == ("float32", str(directory))
    assert spec.moe_layers[-1] == size.layers - 1
    assert spec.eos_token_ids == (1,)
    assert spec.bos_token_id == 0


def test_agrees_with_transformers_on_which_layers_have_experts(tiny_models):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch = pytest.importorskip("torch", reason="torch is not installed")
    for family in FAMILIES:
        directory = tiny_models(family)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
        layers = {
            int(name.split(".")[2])
            for name, _ in model.named_parameters()
            if ".experts." in name and "shared" not in name
        }
        assert set(describe(directory).moe_layers) == layers, family


@pytest.mark.parametrize(
    ("config", "tensors", "moe_layers", "expected"),
    [
        (MIXTRAL, MIXTRAL_TENSORS, (0, 1), ExpertShape(8, 16)),
        (QWEN3, each([1, 5]), (1, 5), ExpertShape(8, 4)),
        (DEEPSEEK_V2, each([2, 4]), (2, 4), ExpertShape(8, 4)),
        (DEEPSEEK_V3, each([3, 4]), (3, 4), ExpertShape(8, 4)),
        (GPT_OSS, published_gpt_oss(), (0, 1), ExpertShape(32, 32, "swigluoai", True, limit=6.5)),
    ],
    ids=lambda value: value.get("model_type", "") if isinstance(value, dict) else "",
)
def test_what_the_hub_has(config, tensors, moe_layers, expected, hand_made):
    spec = describe(hand_made(tensors, config))
    assert spec.moe_layers == moe_layers
    assert spec.shape == expected
    assert spec.dtype == "bfloat16"
    assert spec.max_len == config["max_position_embeddings"]


def test_the_bytes_of_an_expert_are_those_of_all_its_layers(hand_made):
    spec = describe(hand_made(MIXTRAL_TENSORS, MIXTRAL))
    assert spec.expert_bytes == 2 * (3 * 8 * 16) * 2
    assert replace(spec, dtype="float32").expert_bytes == 2 * (3 * 8 * 16) * 4
    biased = replace(spec, shape=ExpertShape(32, 16, "swigluoai", bias=True))
    assert biased.expert_bytes == 2 * (3 * 32 * 16 + 2 * 16 + 32) * 2


@pytest.mark.parametrize("key", ["num_local_experts", "num_experts"])
@pytest.mark.parametrize("dtype", ["torch_dtype", "dtype"])
def test_old_and_new_spellings(key, dtype, hand_made):
    config = {k: v for k, v in QWEN3.items() if k not in ("torch_dtype", "num_experts")}
    spec = describe(hand_made(each([1, 5]), {**config, key: 2, dtype: "float16"}))
    assert (spec.experts, spec.dtype) == (2, "float16")


def test_dtype_asked_for_wins(hand_made):
    assert describe(hand_made(MIXTRAL_TENSORS, MIXTRAL), "float32").dtype == "float32"


def test_token_ids_of_both_files(hand_made):
    root = hand_made(MIXTRAL_TENSORS, {**MIXTRAL, "eos_token_id": [2, 7], "bos_token_id": None})
    (root / "generation_config.json").write_text('{"eos_token_id": [7, 3], "bos_token_id": 5}')
    spec = describe(root)
    assert (spec.eos_token_ids, spec.bos_token_id) == ((2, 7, 3), 5)


def test_context_is_the_one_vllm_derives(hand_made):
    rope = {"rope_type": "linear", "factor": 2.0}
    root = hand_made(MIXTRAL_TENSORS, {**MIXTRAL, "rope_parameters": rope})
    assert describe(root).max_len == 65536
    (root / "tokenizer_config.json").write_text('{"model_max_length": 1000}')
    assert describe(root).max_len == 2000
    (root / "tokenizer_config.json").write_text(json.dumps({"model_max_length": int(1e30)}))
    assert describe(root).max_len == 65536


def test_index_and_several_files(hand_made, tmp_path):
    first, second = list(MIXTRAL_TENSORS)[:5], list(MIXTRAL_TENSORS)[5:]
    hand_made(dict.fromkeys(first, ZERO), MIXTRAL, file="model-00001-of-00002.safetensors")
    hand_made(dict.fromkeys(second, ZERO), file="model-00002-of-00002.safetensors")
    hand_made(MIXTRAL_TENSORS, file="consolidated.safetensors")  # Mistral's second copy
    assert describe(tmp_path).experts == 2
    names = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    names |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert describe(tmp_path).experts == 2
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="model-00002-of-00002.safetensors named in .* not there"):
        describe(tmp_path)


def wrong(**changes):
    return {**MIXTRAL, **changes}


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        (wrong(model_type="llama", num_local_experts=None), {}, "dense model .model_type llama."),
        (wrong(num_local_experts=0), {}, "dense model, .* supported: mixtral, qwen3_moe"),
        (wrong(model_type="dbrx"), {}, "'dbrx' is not supported; one of: mixtral, qwen3_moe"),
        (wrong(model_type=None), {}, "model_type is missing"),
        (wrong(architectures=["MixtralForSequenceClassification"]), MIXTRAL_TENSORS, "expected"),
        (wrong(hidden_size=None), MIXTRAL_TENSORS, "hidden_size is missing"),
        (wrong(hidden_size="8"), MIXTRAL_TENSORS, "hidden_size is '8'; expected a whole number"),
        (wrong(hidden_size=True), MIXTRAL_TENSORS, "hidden_size is True"),
        (wrong(num_hidden_layers=0), {}, "num_hidden_layers is 0; .* at least 1"),
        (wrong(num_experts_per_tok=3), {}, "is 3, but there are 2 experts"),
        (wrong(hidden_act="gelu"), MIXTRAL_TENSORS, "hidden_act is 'gelu'; only 'silu'"),
        (wrong(torch_dtype="float64"), MIXTRAL_TENSORS, "'float64'; set model.dtype to one of"),
        (wrong(eos_token_id="</s>"), MIXTRAL_TENSORS, "eos_token_id is '</s>'"),
        (wrong(quantization_config={"quant_method": "awq"}), {}, "awq.* allowed: unquantised"),
        (wrong(quantization_config={"quant_method": "fp8"}), {}, "fp8 without weight_block_size"),
        (wrong(quantization_config={"quant_method": "mxfp4"}), {}, "mxfp4"),
        (wrong(quantization_config=3), {}, "quantization_config is 3; expected an object"),
        (wrong(), {}, "no expert tensors for layer 0, which has 2 experts"),
        (wrong(num_local_experts=3), MIXTRAL_TENSORS, "experts.2.w1.weight' is missing"),
        ({**QWEN3, "mlp_only_layers": [1, 3, 5]}, {}, "dense model: none of its layers"),
        (
            {**DEEPSEEK_V3, "quantization_config": {"quant_method": "fp8", "fmt": "e5m2"}},
            {},
            "is not supported here",
        ),
    ],
)
def test_one_line_for_every_mistake(config, tensors, message, hand_made):
    root = hand_made(tensors, config)
    with pytest.raises(ModelError, match=message) as caught:
        describe(root)
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)


def test_not_a_checkpoint(tmp_path):
    with pytest.raises(ModelError, match="no such directory; model.path must be the directory"):
        describe(tmp_path / "absent")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        describe(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    with pytest.raises(ModelError, match="is a file"):
        describe(tmp_path / "config.json")
    with pytest.raises(ModelError, match=r"has no \.safetensors file"):
        describe(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match="only safetensors checkpoints"):
        describe(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"model_type": '])
def test_malformed_config(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        describe(tmp_path)


@pytest.mark.parametrize(
    "weight_map", [None, {}, [], {"a": 3}, {"a": "../elsewhere.safetensors"}, {"a": "/etc/passwd"}]
)
def test_malformed_index(weight_map, hand_made):
    root = hand_made(MIXTRAL_TENSORS, MIXTRAL)
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match="weight_map"):
        describe(root)


def test_imports_neither_torch_nor_transformers():
    code = (
        "import sys, tarragon_hpc.models.describe as d;"
        "assert not {'torch', 'transformers', 'vllm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
