"""The rows we take out of vLLM's cache are what vLLM wrote, and we put them back as it would."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tarragon_hpc.attention.kv_layout import KvGroup, kv_layout
from tarragon_hpc.attention.kv_rows import make_rows
from tarragon_hpc.errors import ClusterError
from tarragon_hpc.wire.kv_sums import seal

FAMILIES = ("mixtral", "qwen3-moe", "deepseek-v3", "gpt-oss")


def layout_of(engine):
    """As a connector would: the runner's list holds what is registered, in the decoder's order."""
    modules = engine._config.compilation_config.static_forward_context
    names = [name for name, module in modules.items() if hasattr(module, "get_kv_cache_spec")]
    caches = dict(zip(names, engine._runner.kv_caches, strict=True))
    return kv_layout(caches, engine._runner.kv_cache_config.kv_cache_groups, modules), modules


def vllm_row(first, second):
    """K and V [heads, dim] of one token (MLA: the latent [rank] and [1, rope dim]) as our row."""
    first = first.reshape(second.shape[0], -1)
    return torch.cat([first, second], dim=-1).contiguous().view(torch.uint8).flatten().numpy()


def spy(monkeypatch, modules, layout):
    """Record what vLLM writes: layer index → slot → row. The last writer counts."""
    written = [{} for _ in layout.layers]
    for i, layer in enumerate(layout.layers):
        impl = modules[layer.name].impl
        original = impl.do_kv_cache_update
        mla = type(impl).__name__ == "CPUMLAImpl"

        def update(*args, original=original, mla=mla, rows=written[i]):
            original(*args)
            first, second = args[:2] if mla else args[1:3]
            for token, slot in enumerate(args[3 if mla else 4].tolist()):
                rows[slot] = vllm_row(first[token], second[token])

        monkeypatch.setattr(impl, "do_kv_cache_update", update)
    return written


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_what_vllm_wrote(tiny_models, ours, monkeypatch, family):
    from tests.attention.conftest import Case

    aw = ours(tiny_models(family))
    layout, modules = layout_of(aw.engine)
    indices = [int(layer.name.split(".")[2]) for layer in layout.layers]
    assert indices == sorted(indices), "layers come in the decoder's order"
    assert len(layout.layers) == aw.engine._config.model_config.hf_config.num_hidden_layers
    assert any(group.evicts for group in layout.groups) == (family == "gpt-oss")

    written = spy(monkeypatch, modules, layout)
    aw.generate([Case(list(range(3, 60)), {}), Case([8, 9], {"max_tokens": 5})])
    rows = make_rows(layout)
    slots = []
    for g, group in enumerate(layout.groups):
        of_group = [w for w, layer in zip(written, layout.layers, strict=True) if layer.group == g]
        slots.append(sorted(s for s in of_group[0] if s >= group.block_tokens))
        assert all(set(w) == set(of_group[0]) for w in of_group)
    count = min(map(len, slots))
    assert count > 60
    located = rows.locate([np.array(s[:count]) for s in slots])
    out = rows.memory(count * sum(layout.row_bytes))
    absent = np.empty((len(layout.layers), count), np.uint8)
    rows.gather(located, 0, len(layout.layers), out, absent)
    rows.finish()
    assert not absent.any()
    expected = [
        np.stack([written[i][slot] for slot in slots[layer.group][:count]])
        for i, layer in enumerate(layout.layers)
    ]
    assert np.array_equal(out, np.concatenate([rows.ravel() for rows in expected]))

    caches = [layer.cache.clone() for layer in layout.layers]
    for layer in layout.layers:
        for slot in slots[layer.group][:count]:
            _erase(layer, *divmod(slot, layer.block_tokens))
    sums = np.empty((len(layout.layers), count), np.uint32)
    keys, positions = np.full(count, 5, np.uint64), np.arange(count, dtype=np.uint32)
    seal(out, 0, layout.row_bytes, keys, positions, None, sums, check=True)
    tokens = np.concatenate(expected, axis=1)
    assert rows.scatter(located, tokens, sums.T.copy(), keys, positions, check=True) == 0
    for before, layer in zip(caches, layout.layers, strict=True):
        assert torch.equal(before, layer.cache), "nothing else was touched either"


def _erase(layer, block, offset):
    cache = layer.cache[block]
    if not layer.keys_across:
        cache[:, offset] = 7
        return
    keys, values = cache.view(cache.shape[0], 2, -1).unbind(1)
    keys.view(cache.shape[0], -1, layer.block_tokens)[:, :, offset] = 7
    values.view(cache.shape[0], layer.block_tokens, -1)[:, offset] = 7


def full(**changes):
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    values = {"block_size": 32, "num_kv_heads": 2, "head_size": 8, "dtype": torch.bfloat16}
    return FullAttentionSpec(**values | changes)


def module(backend="CPU_ATTN", isa="vec", shares=None):
    return SimpleNamespace(
        get_attn_backend=lambda: SimpleNamespace(get_name=lambda: backend),
        isa=isa,
        kv_sharing_target_layer_name=shares,
    )


def group(spec, *names):
    from vllm.v1.kv_cache_interface import KVCacheGroupSpec

    return KVCacheGroupSpec(list(names), spec)


def cache(blocks=4, heads=2, tokens=32, width=16, dtype=torch.bfloat16):
    return torch.zeros(blocks, heads, tokens, width, dtype=dtype)


@pytest.mark.parametrize("isa", ["vec", "vec16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernels_of_the_cpu_keep_rows_where_we_think(isa, dtype):
    from vllm import _custom_ops as ops

    dim = 64 if isa == "vec" else 80
    tensor = cache(width=2 * dim, dtype=dtype)
    k, v = (torch.randn(3, 2, dim).to(dtype) for _ in range(2))
    halves = tensor.view(4, 2, 64, dim).chunk(2, dim=2)
    slots = torch.tensor([33, 66, 127])
    scale = {"k_scale": 1.0, "v_scale": 1.0, "kv_cache_dtype": "auto"}
    ops.cpu_attn_reshape_and_cache(k, v, *halves, slots, isa, **scale)
    spec = full(head_size=dim, dtype=dtype)
    layout = kv_layout({"a": tensor}, [group(spec, "a")], {"a": module(isa=isa)})
    rows = make_rows(layout)
    out, absent = rows.memory(3 * layout.row_bytes[0]), np.empty(3, np.uint8)
    rows.gather(rows.locate([slots.numpy()]), 0, 1, out, absent)
    expected = [vllm_row(k[i], v[i]) for i in range(3)]
    assert np.array_equal(out.reshape(3, -1), np.stack(expected))


def test_order_groups_and_shared_caches():
    from vllm.v1.kv_cache_interface import SlidingWindowSpec, UniformTypeKVCacheSpecs

    window = SlidingWindowSpec(
        block_size=32, num_kv_heads=2, head_size=8, dtype=torch.bfloat16, sliding_window=64
    )
    wide = full(head_size=16)
    both = UniformTypeKVCacheSpecs(32, {"a": full(), "c": wide})
    modules = {
        "a": module(), "b": module(), "c": module(), "d": module(shares="a"),
        "no attention": SimpleNamespace(),
    }  # fmt: skip
    caches = {"c": cache(width=32), "a": cache(), "b": cache()}
    caches["d"] = caches["a"]
    layout = kv_layout(caches, [group(both, "a", "c"), group(window, "b")], modules)
    assert [layer.name for layer in layout.layers] == ["a", "b", "c"]
    assert [layer.group for layer in layout.layers] == [0, 1, 0]
    assert layout.groups == (KvGroup(32, False), KvGroup(32, True))
    assert layout.row_bytes == (64, 64, 128)


def test_blocks_may_be_made_of_smaller_ones():
    tensor = cache(blocks=8, tokens=16).permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    modules = {"a": module("FLASH_ATTN")}
    layout = kv_layout({"a": tensor}, [group(full(), "a")], modules)
    tensor[5, :, 3] = 1
    rows = make_rows(layout)
    out, absent = rows.memory(64), np.empty(1, np.uint8)
    rows.gather(rows.locate([np.array([2 * 32 + 16 + 3])]), 0, 1, out, absent)
    assert (out.view(np.uint16) == 0x3F80).all(), "1.0"


def _refused(case):
    from vllm.v1.kv_cache_interface import (
        KVQuantMode,
        MambaSpec,
        MLAAttentionSpec,
        RSWASpec,
        SlidingWindowMLASpec,
    )

    one_head = {"num_kv_heads": 1, "head_size": 8, "dtype": torch.bfloat16}
    mla = {"block_size": 32, **one_head}
    mamba = MambaSpec(block_size=32, shapes=((4, 4),), dtypes=(torch.float32,))
    quantised = full(kv_quant_mode=KVQuantMode.INT8_PER_TOKEN_HEAD)
    return {
        "the tiles of AMX": (full(), module(isa="amx"), cache(), "CPU kernel 'amx'"),
        "no kernel": (full(), module(isa=None), cache(), "CPU kernel None"),
        "linear attention": (mamba, module("MAMBA2_ATTN"), cache(), "MambaSpec"),
        "a window of its own": (
            RSWASpec(block_size=32, **one_head, rswa_window=4), module(), cache(), "RSWASpec",
        ),
        "compressed window": (
            SlidingWindowMLASpec(**mla, sliding_window=4), module(), cache(), "SlidingWindowMLA",
        ),
        "compressed": (
            MLAAttentionSpec(**mla, tokens_per_state=4), module(), cache(), "per 4 tokens",
        ),
        "scales elsewhere": (quantised, module(), cache(), "INT8_PER_TOKEN_HEAD"),
        "unknown backend": (full(), module("ROCM_ATTN"), cache(), "backend ROCM_ATTN"),
        "a raw tensor": (full(), module("FLASH_ATTN"), torch.zeros(8), r"torch.float32 \(8,\)"),
        "odd blocks": (full(block_size=48), module(), cache(), "of 48 tokens"),
        "gaps": (full(), module(), cache(width=32)[..., :16], "not contiguous"),
    }[case]  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        "the tiles of AMX", "no kernel", "linear attention", "a window of its own",
        "compressed window", "compressed", "scales elsewhere", "unknown backend", "a raw tensor",
        "odd blocks", "gaps",
    ],
)  # fmt: skip
def test_what_cannot_be_copied_is_refused(case):
    spec, layer, tensor, reason = _refused(case)
    with pytest.raises(ClusterError, match=rf"stores must be 0 .* layer\.0 .*{reason}"):
        kv_layout({"layer.0": tensor}, [group(spec, "layer.0")], {"layer.0": layer})


def test_layers_that_vllm_does_not_place_are_refused():
    with pytest.raises(ClusterError, match="no KV cache group"):
        kv_layout({"a": cache()}, [group(full(), "b")], {"a": module()})
    with pytest.raises(ClusterError, match="forward context"):
        kv_layout({"a": cache()}, [group(full(), "a")], {})
