"""No expert ever reaches an AW: neither from the disk nor into memory."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext

import pytest

from tarragon_hpc.errors import ClusterError


def prompts():
    from tests.attention.conftest import Case

    return [Case([5 * i + 60, 100, 200], {"max_tokens": 8}) for i in range(3)]


def parameter_bytes(llm) -> int:
    model = llm.model_executor.driver_worker.worker.get_model()
    return sum(
        p.numel() * p.element_size() for p in {id(p): p for p in model.parameters()}.values()
    )


def strip_experts(source, target):
    """A copy of a checkpoint with no expert tensor in it."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    for file in target.glob("*.safetensors"):
        tensors = {k: v for k, v in load_file(file).items() if ".experts." not in k}
        save_file(tensors, file)
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if ".experts." not in k}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    return target


@pytest.mark.parametrize("family", ["mixtral", "deepseek-v3", "gpt-oss"])
def test_experts_are_neither_read_nor_allocated(family, tiny_models, tmp_path, plain, ours):
    path = tiny_models(family)
    whole = plain(path)
    rest = ours(path, weights=strip_experts(path, tmp_path / "model"))
    assert rest.generate(prompts()) == whole.generate(prompts())
    experts = sum(t.numel() * t.element_size() for t in rest.experts.tensors.values())
    assert parameter_bytes(whole.llm) - parameter_bytes(rest.engine._llm) == experts


def test_a_layer_with_experts_of_its_own_is_noticed(tiny_models, monkeypatch):
    """As if vLLM built its experts by another class than it does today."""
    from tests.attention.conftest import Ours

    monkeypatch.setattr("tarragon_hpc.attention.engine.remote_experts", lambda _: nullcontext())
    monkeypatch.setattr("tarragon_hpc.attention.engine.load_format.LOAD_FORMAT", "safetensors")
    with pytest.raises(ClusterError, match="layer 0: experts' method is"):
        Ours(tiny_models("mixtral"))


def test_experts_that_the_workers_would_compute_differently_are_noticed(
    tiny_models, ours, monkeypatch
):
    from dataclasses import replace

    from tarragon_hpc.attention.remote_experts import check_coverage
    from tarragon_hpc.models.describe import describe

    path = tiny_models("mixtral")
    spec, vllm_config = describe(path, "float32"), ours(path).engine._config
    check_coverage(vllm_config, spec)
    with pytest.raises(ClusterError, match="layer 0: bias is False in vLLM"):
        check_coverage(vllm_config, replace(spec, shape=replace(spec.shape, bias=True)))
    with pytest.raises(ClusterError, match=r"experts in layers \[0, 1, 2, 3\]"):
        check_coverage(vllm_config, replace(spec, moe_layers=(1, 2, 3)))
    compilation = vllm_config.compilation_config
    layer = compilation.static_forward_context[compilation.static_all_moe_layers[1]]
    monkeypatch.setattr(layer.routed_experts, "apply_router_weight_on_input", True)
    with pytest.raises(ClusterError, match="layer 1: apply_router_weight_on_input is True"):
        check_coverage(vllm_config, spec)


def test_other_engines_of_the_process_keep_their_experts(tiny_models, ours):
    from vllm.model_executor.custom_op import op_registry_oot

    ours(tiny_models("mixtral"))
    assert not any("Experts" in name for name in op_registry_oot)
