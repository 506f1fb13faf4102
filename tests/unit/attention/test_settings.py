import pytest

from tarragon_hpc.attention.settings import default_kv_cache, engine_arguments
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ConfigError
from tarragon_hpc.models.spec import ExpertShape, ModelSpec

SPEC = ModelSpec(
    path="/models/m", family="mixtral", architecture="MixtralForCausalLM", dtype="bfloat16",
    layers=2, moe_layers=(0, 1), experts=8, top_k=2, shape=ExpertShape(64, 128), vocab=1000,
    max_len=4096, eos_token_ids=(1,), bos_token_id=0,
)  # fmt: skip


def arguments(device="cpu", ops=(), **sections):
    config = load_config({"model": {"path": "m"}, **sections})
    return engine_arguments(config, SPEC, device, "some_format", ops)


def test_a_config_with_a_path_alone_is_complete():
    args = arguments()
    assert args["model"] == "/models/m"
    assert args["dtype"] == "bfloat16"
    assert args["max_model_len"] == 4096
    assert args["load_format"] == "some_format"
    assert args["enforce_eager"]
    assert not args["async_scheduling"]


def test_what_the_user_sets_reaches_the_engine():
    args = arguments(
        model={"path": "m", "max_model_len": 100, "seed": 7},
        attention={
            "max_num_seqs": 3, "max_num_batched_tokens": 9, "kv_cache": "1MiB", "block_size": 64,
            "prefix_caching": False, "gpu_memory_fraction": 0.5,
        },
    )  # fmt: skip
    assert (args["max_model_len"], args["seed"]) == (100, 7)
    assert (args["max_num_seqs"], args["max_num_batched_tokens"]) == (3, 9)
    assert (args["kv_cache_memory_bytes"], args["block_size"]) == (1 << 20, 64)
    assert args["enable_prefix_caching"] is False
    assert args["gpu_memory_utilization"] == 0.5


def test_piecewise_graphs_leave_attention_and_the_expert_call_outside():
    args = arguments("cuda", ["vllm::attention"], attention={"cuda_graphs": "piecewise"})
    assert not args["enforce_eager"]
    assert args["compilation_config"]["cudagraph_mode"] == "PIECEWISE"
    outside = args["compilation_config"]["splitting_ops"]
    assert {"vllm::attention", "vllm::moe_forward", "vllm::moe_forward_shared"} <= set(outside)


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"model": {"path": "m", "max_model_len": 5000}}, "model.max_model_len"),
        (
            {"attention": {"max_num_batched_tokens": 8, "max_num_seqs": 9}},
            "attention.max_num_batched_tokens",
        ),
        ({"attention": {"cuda_graphs": "piecewise"}}, "attention.cuda_graphs"),
        ({"attention": {"block_size": 16}}, "attention.block_size"),
    ],
)
def test_what_vllm_would_refuse_is_refused_by_the_name_of_its_key(sections, key):
    with pytest.raises(ConfigError) as caught:
        arguments(**sections)
    assert caught.value.key == key


def test_any_block_size_goes_on_a_gpu():
    assert arguments("cuda", attention={"block_size": 16})["block_size"] == 16


def test_the_default_kv_cache_holds_at_least_one_sequence():
    assert default_kv_cache(1000, 2048) == 512 << 20
    token = 128 << 10
    assert default_kv_cache(token, 32768) >= token * (32768 + 128)
