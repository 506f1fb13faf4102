"""Every layout gives the same tensors; only the owned experts' pages are touched."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from tarragon_hpc.errors import ModelError
from tarragon_hpc.expert.dequant import float32_to_bfloat16
from tarragon_hpc.expert.weights import footprint, load_experts, read_ahead
from tarragon_hpc.models.describe import describe
from tarragon_hpc.models.presets import FAMILIES
from tarragon_hpc.models.spec import ExpertShape, ModelSpec

E, H, F = 3, 32, 64

RNG = np.random.default_rng(0)
GATE = RNG.standard_normal((E, F, H)).astype(np.float32)
UP = RNG.standard_normal((E, F, H)).astype(np.float32)
DOWN = RNG.standard_normal((E, H, F)).astype(np.float32)


def spec(root, family="qwen3-moe", dtype="float32", hidden=H, ffn=F, experts=E):
    shape = ExpertShape(hidden, ffn)
    return ModelSpec(
        str(root), family, "", dtype, 2, (1,), experts, 1, shape, 100, 100, (), None
    )  # fmt: skip


def each(gate, up, down):
    tensors = {}
    for e in range(len(gate)):
        prefix = f"model.layers.1.mlp.experts.{e}"
        tensors[f"{prefix}.gate_proj.weight"] = gate[e]
        tensors[f"{prefix}.up_proj.weight"] = up[e]
        tensors[f"{prefix}.down_proj.weight"] = down[e]
    return tensors


def interleaved(gate, up, axis):
    return np.stack([gate, up], axis=axis + 1).reshape(
        *gate.shape[:axis], 2 * gate.shape[axis], *gate.shape[axis + 1 :]
    )


def gpt_oss(cast=lambda array: array):
    prefix = "model.layers.1.mlp.experts"
    bias = {name: RNG.standard_normal((E, F)).astype(np.float32) for name in ("gate", "up")}
    down_bias = RNG.standard_normal((E, H)).astype(np.float32)
    gate_up = interleaved(GATE, UP, 1).transpose(0, 2, 1)
    tensors = {
        f"{prefix}.gate_up_proj": cast(np.ascontiguousarray(gate_up)),
        f"{prefix}.gate_up_proj_bias": cast(interleaved(bias["gate"], bias["up"], 1)),
        f"{prefix}.down_proj": cast(np.ascontiguousarray(DOWN.transpose(0, 2, 1))),
        f"{prefix}.down_proj_bias": cast(down_bias),
    }
    return tensors, bias["gate"], bias["up"], down_bias


def check(tensors, gate=GATE, up=UP, down=DOWN):
    for (_, e), t in tensors.items():
        for ours, expected in ((t.gate, gate[e]), (t.up, up[e]), (t.down, down[e])):
            np.testing.assert_array_equal(ours, expected)
            assert ours.flags.c_contiguous
            assert ours.flags.aligned


def test_one_tensor_per_projection_is_a_view(hand_made):
    root = hand_made(each(GATE, UP, DOWN), {})
    tensors = load_experts(spec(root), [2, 0, 2])
    assert list(tensors) == [(1, 0), (1, 2)]
    check(tensors)
    assert footprint(tensors) == (2 * 3 * F * H * 4, 0)


def test_fused_rows_are_views(hand_made):
    prefix = "model.layers.1.mlp.experts"
    fused = {
        f"{prefix}.gate_up_proj": np.concatenate([GATE, UP], axis=1),
        f"{prefix}.down_proj": DOWN,
    }
    tensors = load_experts(spec(hand_made(fused, {})), range(E))
    check(tensors)
    assert footprint(tensors).copied == 0


def test_gpt_oss_is_transposed_and_copied(hand_made):
    stored, gate_bias, up_bias, down_bias = gpt_oss()
    tensors = load_experts(spec(hand_made(stored, {}), "gpt-oss"), range(E))
    check(tensors)
    for (_, e), t in tensors.items():
        np.testing.assert_array_equal(t.gate_bias, gate_bias[e])
        np.testing.assert_array_equal(t.up_bias, up_bias[e])
        np.testing.assert_array_equal(t.down_bias, down_bias[e])
    assert footprint(tensors).copied >= E * 3 * F * H * 4


def test_gpt_oss_bfloat16_keeps_its_bits(hand_made):
    stored, *_ = gpt_oss(float32_to_bfloat16)
    tensors = load_experts(spec(hand_made(stored, {}), "gpt-oss", "bfloat16"), [1])
    check(tensors, *(float32_to_bfloat16(t) for t in (GATE, UP, DOWN)))
    assert tensors[1, 1].bfloat16


def mxfp4_of(rows, columns):
    blocks = RNG.integers(0, 256, (E, rows, columns // 32, 16), dtype=np.uint8)
    scales = RNG.integers(120, 130, (E, rows, columns // 32), dtype=np.uint8)
    return blocks, scales


def published_gpt_oss():
    prefix = "model.layers.1.mlp.experts"
    stored, *_ = gpt_oss(float32_to_bfloat16)
    tensors = {name: value for name, value in stored.items() if name.endswith("_bias")}
    for name, rows, columns in (("gate_up_proj", 2 * F, H), ("down_proj", H, F)):
        blocks, scales = mxfp4_of(rows, columns)
        tensors[f"{prefix}.{name}_blocks"] = blocks
        tensors[f"{prefix}.{name}_scales"] = scales
    return tensors


MXFP4 = {"quantization_config": {"quant_method": "mxfp4"}}


def test_mxfp4_as_transformers_reads_it(hand_made):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    stored = published_gpt_oss()
    tensors = load_experts(spec(hand_made(stored, MXFP4), "gpt-oss", "bfloat16"), range(E))
    prefix = "model.layers.1.mlp.experts"

    def reference(name):  # [E, in, out], as transformers multiplies with it
        parts = (torch.from_numpy(stored[f"{prefix}.{name}_{p}"]) for p in ("blocks", "scales"))
        return convert_moe_packed_tensors(*parts).view(torch.int16).numpy().view(np.uint16)

    gate_up, down = reference("gate_up_proj"), reference("down_proj")
    gate, up = gate_up[:, :, 0::2].transpose(0, 2, 1), gate_up[:, :, 1::2].transpose(0, 2, 1)
    check(tensors, gate, up, down.transpose(0, 2, 1))


FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]}}


def test_fp8_blocks_are_dequantised(hand_made):
    tensors, expected = {}, []
    for e in range(E):
        parts = []
        for name, (n, k) in {"gate": (F, H), "up": (F, H), "down": (H, F)}.items():
            powers = RNG.integers(-2, 3, (n // 16, k // 16))
            bits = RNG.choice(np.array([0x38, 0xB8, 0x40, 0x30], np.uint8), (n, k))
            values = np.vectorize({0x38: 1.0, 0xB8: -1.0, 0x40: 2.0, 0x30: 0.5}.get)(bits)
            weight = f"model.layers.1.mlp.experts.{e}.{name}_proj.weight"
            tensors[weight] = ("F8_E4M3", bits)
            tensors[weight + "_scale_inv"] = np.ldexp(np.float32(1), powers)
            parts.append(values * np.kron(np.ldexp(1.0, powers), np.ones((16, 16))))
        expected.append(parts)
    root = hand_made(tensors, FP8)
    loaded = load_experts(spec(root), range(E))
    check(loaded, *([parts[i].astype(np.float32) for parts in expected] for i in range(3)))
    assert footprint(loaded).mapped == 0
    served = load_experts(spec(root, dtype="bfloat16"), [0])
    np.testing.assert_array_equal(served[1, 0].gate, float32_to_bfloat16(loaded[1, 0].gate))


@pytest.mark.parametrize("served", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_every_type_is_served_in_every_type(stored, served, hand_made):
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def cast(array, name):
        tensor = torch.from_numpy(array).to(getattr(torch, name))
        return (
            tensor.view(torch.int16).numpy().view(np.uint16)
            if name == "bfloat16"
            else (tensor.numpy())
        )

    def as_stored(array):
        return torch.from_numpy(array).to(getattr(torch, stored)).float().numpy()

    root = hand_made(each(*(cast(t, stored) for t in (GATE, UP, DOWN))), {})
    tensors = load_experts(spec(root, dtype=served), range(E))
    check(tensors, *(cast(as_stored(t), served) for t in (GATE, UP, DOWN)))
    assert (footprint(tensors).copied == 0) == (stored == served)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_wrote_is_what_transformers_holds(family, tiny_models):
    from transformers import AutoModelForCausalLM

    directory = tiny_models(family)
    model = dict(AutoModelForCausalLM.from_pretrained(directory).named_parameters())
    described = describe(directory)
    tensors = load_experts(described, range(described.experts))
    assert len(tensors) == described.experts * len(described.moe_layers)
    ffn = described.shape.ffn
    for (layer, e), t in tensors.items():
        prefix = f"model.layers.{layer}.mlp.experts"
        gate_up = model[f"{prefix}.gate_up_proj"][e].detach().numpy()
        down = model[f"{prefix}.down_proj"][e].detach().numpy()
        if family == "gpt-oss":
            gate, up, down = gate_up[:, 0::2].T, gate_up[:, 1::2].T, down.T
            both = model[f"{prefix}.gate_up_proj_bias"][e].detach().numpy()
            np.testing.assert_array_equal(t.gate_bias, both[0::2])
            np.testing.assert_array_equal(t.up_bias, both[1::2])
        else:
            gate, up = gate_up[:ffn], gate_up[ffn:]
            assert t.gate_bias is None
        np.testing.assert_array_equal(t.gate, gate)
        np.testing.assert_array_equal(t.up, up)
        np.testing.assert_array_equal(t.down, down)


def test_a_subset_of_layers(tiny_models):
    described = describe(tiny_models("mixtral"))
    assert list(load_experts(described, [3], layers=[2])) == [(2, 3)]


def test_unaligned_tensors_are_copied(hand_made):
    root = hand_made({"pad": np.zeros(1, np.uint8), **each(GATE, UP, DOWN)}, {})
    tensors = load_experts(spec(root), range(E))
    check(tensors)
    assert footprint(tensors).mapped == 0


def resident(path: Path) -> int:
    """Bytes of a file that this process has mapped in."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_only_the_owned_experts_are_paged_in(hand_made):
    hidden, ffn, experts = 512, 1024, 8  # 2 MiB per tensor
    shape = (experts, ffn, hidden)
    big = np.ones(shape, np.float32)
    root = hand_made(each(big, big, big.reshape(experts, hidden, ffn)), {})
    tensors = load_experts(spec(root, hidden=hidden, ffn=ffn, experts=experts), [1, 6])
    assert footprint(tensors) == (2 * 3 * (2 << 20), 0)
    file = root / "model.safetensors"
    assert resident(file) < 1 << 20  # the header, and what the kernel maps around it
    read_ahead(tensors)
    assert 12 << 20 <= resident(file) < 15 << 20


def drop(name):
    tensors = published_gpt_oss()
    del tensors[f"model.layers.1.mlp.experts.{name}"]
    return tensors


@pytest.mark.parametrize(
    ("tensors", "config", "family", "message"),
    [
        ({}, {}, "qwen3-moe", "no expert tensors for layer 1"),
        (each(GATE, UP, UP), {}, "qwen3-moe", r"down_proj.weight' has shape .64, 32., expected"),
        (each(GATE.view(np.uint8), UP, DOWN), {}, "qwen3-moe", "has shape"),
        (
            {k: ("F8_E4M3", v) for k, v in each(*[np.zeros((E, F, H), np.uint8)] * 3).items()},
            {},
            "qwen3-moe",
            "has type F8_E4M3; allowed here: F32, F16, BF16",
        ),
        (
            {k: ("F8_E4M3", v) for k, v in each(*[np.zeros((E, F, H), np.uint8)] * 3).items()},
            FP8,
            "qwen3-moe",
            "gate_proj.weight_scale_inv' is missing",
        ),
        (drop("down_proj_scales"), MXFP4, "gpt-oss", "down_proj_scales' is missing"),
        (drop("gate_up_proj_bias"), MXFP4, "gpt-oss", "gate_up_proj_bias' is missing"),
        (
            {**published_gpt_oss(), "model.layers.1.mlp.experts.gate_up_proj_scales":
             np.zeros((E, 2 * F, 1), np.float32)},
            MXFP4,
            "gpt-oss",
            "has type F32; allowed here: U8",
        ),
    ],
)  # fmt: skip
def test_tensors_that_are_not_what_they_should_be(tensors, config, family, message, hand_made):
    root = hand_made({"x": np.zeros(1, np.float32), **tensors}, config)
    with pytest.raises(ModelError, match=message) as caught:
        load_experts(spec(root, family), [0])
    assert str(root) in str(caught.value)


def test_fp8_scales_of_another_block_size(hand_made):
    tensors = {}
    for name, value in each(
        *[np.zeros((E, F, H), np.uint8)] * 2, np.zeros((E, H, F), np.uint8)
    ).items():
        tensors[name] = ("F8_E4M3", value)
        tensors[name + "_scale_inv"] = np.ones((1, 1), np.float32)
    with pytest.raises(ModelError, match=r"scale_inv' has scales of shape \(1, 1\), expected"):
        load_experts(spec(hand_made(tensors, FP8)), [0])


def test_experts_the_model_does_not_have(hand_made):
    described = spec(hand_made(each(GATE, UP, DOWN), {}))
    with pytest.raises(ValueError, match="with 3"):
        load_experts(described, [3])
    with pytest.raises(ValueError, match="layers"):
        load_experts(described, [0], layers=[0])


def test_shadow_weights_are_the_same_bytes(tiny_models):
    """Two workers that hold the same expert read the same numbers."""
    described = describe(tiny_models("qwen3-moe"))
    first, second = load_experts(described, [5]), load_experts(described, [4, 5])
    for key, tensors in first.items():
        for field in dataclasses.fields(tensors):
            ours, other = getattr(tensors, field.name), getattr(second[key], field.name)
            np.testing.assert_array_equal(ours, other)
