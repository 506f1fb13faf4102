"""Number formats against torch (the casts) and against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tarragon_hpc.expert import dequant

torch = pytest.importorskip("torch", reason="torch is not installed")


def bits_of(tensor):
    return tensor.view(torch.int16).numpy().view(np.uint16)


def test_bfloat16_rounds_as_torch_does():
    rng = np.random.default_rng(1)
    values = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    special = np.array([0, -0.0, np.inf, -np.inf, 3.4e38, 1e-45, 1.00390625, 1.01171875])
    values = np.concatenate([values, special.astype(np.float32)])
    expected = bits_of(torch.from_numpy(values).to(torch.bfloat16))
    nan = np.isnan(values)
    rounded = dequant.float32_to_bfloat16(values)
    np.testing.assert_array_equal(rounded[~nan], expected[~nan])
    assert np.isnan(dequant.bfloat16_to_float32(rounded[nan])).all()


def test_bfloat16_widens_exactly():
    bits = np.arange(65536, dtype=np.uint16)
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(dequant.bfloat16_to_float32(bits), expected)


def test_float16_overflow_is_infinite():
    out = dequant.from_float32(np.array([1e6, 1.0], np.float32), "float16")
    assert out.dtype == np.float16
    assert out.tolist() == [np.inf, 1.0]


def test_all_fp8_values():
    byte = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(byte).view(torch.float8_e4m3fn).float().numpy()
    ours = dequant.fp8_block(byte[None], np.ones((1, 2), np.float32), (128, 128))[0]
    np.testing.assert_array_equal(ours, expected)


def test_fp8_blocks_at_the_edges():
    one = np.full((3, 5), 0x38, np.uint8)  # 1.0
    scale = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    out = dequant.fp8_block(one, scale, (2, 2))
    assert out.tolist() == [[1, 1, 2, 2, 3], [1, 1, 2, 2, 3], [4, 4, 5, 5, 6]]
    with pytest.raises(ValueError, match=r"expected \(2, 3\)"):
        dequant.fp8_block(one, scale.T, (2, 2))


def test_mxfp4_by_hand():
    blocks = np.zeros((1, 2, 16), np.uint8)
    blocks[0, 0, 0] = 0x21  # low nibble first: 0.5, then 1.0
    blocks[0, 0, 15] = 0xF7  # 6.0, then -6.0
    blocks[0, 1, 0] = 0x9A  # -1.0, then -0.5
    scales = np.array([[128, 126]], np.uint8)  # times 2 and times 1/2
    out = dequant.mxfp4(blocks, scales)
    assert out.shape == (1, 64)
    assert out[0, [0, 1, 30, 31, 32, 33]].tolist() == [1.0, 2.0, 12.0, -12.0, -0.5, -0.25]
    assert np.count_nonzero(out) == 6
    assert np.isnan(dequant.mxfp4(blocks, np.full((1, 2), 255, np.uint8))).all()
    with pytest.raises(ValueError, match="scales of shape"):
        dequant.mxfp4(blocks, scales.T)


def test_mxfp4_as_transformers_reads_it():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    rng = np.random.default_rng(2)
    blocks = rng.integers(0, 256, (2, 6, 3, 16), dtype=np.uint8)
    scales = rng.integers(110, 140, (2, 6, 3), dtype=np.uint8)
    expected = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales))
    for e in range(2):
        ours = dequant.from_float32(dequant.mxfp4(blocks[e], scales[e]), "bfloat16")
        np.testing.assert_array_equal(ours, bits_of(expected[e].T.contiguous()))
