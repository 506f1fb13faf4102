"""Tiny checkpoints: what is on disk, and that the model in it is worth testing with."""

from __future__ import annotations

import hashlib
import json

import pytest

from tarragon_hpc.errors import UserError
from tarragon_hpc.models.presets import FAMILIES, size_for
from tarragon_hpc.models.tiny import write_tiny


def digest(directory):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


@pytest.mark.parametrize("family", FAMILIES)
def test_generates_varied_text_that_depends_on_the_experts(family, tiny_models):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from transformers import AutoModelForCausalLM

    directory = tiny_models(family)
    model = AutoModelForCausalLM.from_pretrained(directory)
    prompt = torch.arange(10, 30)[None]

    def generate():
        settings = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
        return model.generate(prompt, **settings)[0, 20:].tolist()

    tokens = generate()
    assert len(set(tokens)) > 16
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "experts" in name and "shared" not in name:
                weight.zero_()
    assert generate() != tokens


def test_checkpoint_is_sharded_with_an_index(tiny_models):
    directory = tiny_models("mixtral")
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) >= 3
    assert all((directory / f).exists() for f in files)
    # the names a released checkpoint has, not the library's fused ones
    assert "model.layers.0.block_sparse_moe.experts.0.w1.weight" in index["weight_map"]


def test_deepseek_v3_names_its_gate(tiny_models):
    config = json.loads((tiny_models("deepseek-v3") / "config.json").read_text())
    assert (config["topk_method"], config["scoring_func"]) == ("noaux_tc", "sigmoid")


def test_seed_decides_the_bytes(tmp_path):
    options = {"layers": 1, "hidden": 64, "experts": 2, "ffn": 32, "vocab": 512}
    first = write_tiny("mixtral", tmp_path / "a", seed=7, **options)
    again = write_tiny("mixtral", tmp_path / "b", seed=7, **options)
    other = write_tiny("mixtral", tmp_path / "c", seed=8, **options)
    assert digest(first) == digest(again)
    assert digest(first) != digest(other)


def test_dtype_and_size_are_what_was_asked_for(tmp_path):
    from safetensors import safe_open

    target = write_tiny(
        "qwen3-moe", tmp_path / "m", layers=2, hidden=64, experts=4, top_k=2, ffn=32, vocab=600,
        dtype="bfloat16",
    )  # fmt: skip
    config = json.loads((target / "config.json").read_text())
    experts = config.get("num_experts", config.get("num_local_experts"))  # transformers 4, 5
    assert (config["num_hidden_layers"], experts, config["vocab_size"]) == (2, 4, 600)
    for shard in target.glob("*.safetensors"):
        with safe_open(shard, "np") as file:
            assert all(file.get_slice(k).get_dtype() == "BF16" for k in file.keys())  # noqa: SIM118


def test_bench_preset_has_430_million_parameters():
    size = size_for("mixtral", "bench")
    experts = size.layers * size.experts * 3 * size.hidden * size.ffn
    attention = size.layers * size.hidden * size.head_dim * 2 * (size.heads + size.kv_heads)
    total = experts + attention + 2 * size.vocab * size.hidden
    assert 420e6 < total < 440e6
    assert (size.layers, size.experts, size.top_k, size.dtype) == (8, 8, 2, "bfloat16")


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("mixtral", {"preset": "huge"}, "preset 'huge': allowed are tiny, bench"),
        ("mixtral", {"hidden": 100}, "--hidden 100: allowed is a multiple of 64"),
        ("mixtral", {"layers": 0}, "--layers 0: allowed is 1 to 256"),
        ("mixtral", {"ffn": 48}, "--ffn 48: allowed is a multiple of 32"),
        ("mixtral", {"experts": 4, "top_k": 5}, "--top-k 5: allowed is 1 to 4 (experts)"),
        ("mixtral", {"vocab": 100}, "--vocab 100: allowed is 512 to 262144"),
        ("mixtral", {"dtype": "fp8"}, "--dtype 'fp8': allowed are float32"),
        ("deepseek-v3", {"experts": 1}, "at least 2 for deepseek-v3"),
    ],
)
def test_bad_sizes_name_the_option(family, changes, message):
    with pytest.raises(UserError) as caught:
        size_for(family, **changes)
    assert message in str(caught.value)


def test_unknown_family_is_told_which_there_are(tmp_path):
    with pytest.raises(UserError, match="family 'llama': allowed are mixtral, qwen3-moe"):
        write_tiny("llama", tmp_path / "x")


def test_fewer_experts_than_top_k_lowers_top_k():
    assert size_for("qwen3-moe", experts=2).top_k == 2


def test_refuses_a_directory_with_files(tmp_path):
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        write_tiny("mixtral", tmp_path)
    assert (tmp_path / "keep.txt").read_text() == "mine"
