"""The mapping gives what the reference library wrote, and nothing outside of the file."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tarragon_hpc.errors import ModelError
from tarragon_hpc.models.checkpoint import open_checkpoint
from tarragon_hpc.models.safetensors_map import MappedFile, read_header


def test_reads_what_the_reference_library_writes(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.standard_normal((3, 5)).astype(np.float32),
        "b": rng.standard_normal((7,)).astype(np.float16),
        "c": rng.integers(0, 255, (2, 3, 4)).astype(np.uint8),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(2.5),
    }
    save_file(tensors, tmp_path / "m.safetensors", {"format": "np"})
    mapped = MappedFile(tmp_path / "m.safetensors")
    assert set(mapped.tensors) == set(tensors)
    for name, expected in tensors.items():
        view = mapped.view(name)
        assert view.dtype == expected.dtype
        assert not view.flags.writeable
        np.testing.assert_array_equal(view, expected)


def test_views_share_the_mapping_and_outlive_the_reader(hand_made):
    root = hand_made({"x": np.arange(6, dtype=np.float32).reshape(2, 3)})
    mapped = MappedFile(root / "model.safetensors")
    first, second = mapped.view("x"), mapped.view("x")
    assert np.shares_memory(first, second)
    del mapped, second
    assert first.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_bfloat16_comes_as_its_bits(hand_made):
    bits = np.array([0x3F80, 0xC000], np.uint16)
    assert MappedFile(hand_made({"x": bits}) / "model.safetensors").view("x").tolist() == [
        0x3F80,
        0xC000,
    ]


def write(path, header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(struct.pack("<Q", size) + text + body)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"x": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 50_000, "not valid JSON"),
        (b"[]", "not a JSON object"),
        ({"x": 3}, "malformed entry of tensor 'x'"),
        ({"x": {"dtype": "F32", "shape": [2]}}, "malformed entry"),
        (entry(shape=(-2,)), "malformed entry"),
        (entry(shape=(2.0,)), "malformed entry"),
        (entry(shape=(True, 2)), "malformed entry"),
        (entry(offsets=(0, 8, 9)), "malformed entry"),
        (entry(offsets=(-8, 0)), "malformed entry"),
        (entry(dtype=7), "malformed entry"),
        (entry(offsets=(8, 0)), "ends before it begins"),
        (entry(offsets=(0, 16), shape=(4,)), "cut off: tensor 'x' ends at byte"),
        (entry(offsets=(0, 2**70)), "cut off"),
        (entry(shape=(3,)), "of shape .3. and type F32 has 8 bytes"),
        (entry(shape=(2**62, 8)), "has 8 bytes"),
    ],
)
def test_malformed_headers(header, message, tmp_path):
    path = tmp_path / "bad.safetensors"
    write(path, header, b"12345678")
    with pytest.raises(ModelError, match=message):
        read_header(path)


@pytest.mark.parametrize("data", [b"", b"1234567", struct.pack("<Q", 1), struct.pack("<Q", 2**63)])
def test_not_a_safetensors_file(data, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="not a safetensors file, or is cut off"):
        read_header(path)


def test_a_type_numpy_cannot_hold_is_refused_when_it_is_read(tmp_path):
    path = tmp_path / "f4.safetensors"
    write(path, entry(dtype="F4", shape=(16,)), b"12345678")
    assert read_header(path)["x"].dtype == "F4"
    with pytest.raises(ModelError, match="unsupported type F4"):
        MappedFile(path).view("x")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ModelError, match="No such file"):
        read_header(tmp_path / "absent.safetensors")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_byte_flip_reads_outside_the_file(data, hand_made):
    """Whatever one changed byte makes of the header: an error, or arrays inside of the file."""
    root = hand_made({"x": np.arange(4, dtype=np.float32), "y": np.zeros(3, np.uint16)})
    path = root / "model.safetensors"
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        mapped = MappedFile(path)
        views = [mapped.view(name) for name in mapped.tensors]
    except ModelError:
        return
    for view in views:
        assert view.nbytes <= len(content)
        view.tobytes()


def test_ambiguous_tensor_without_an_index(hand_made):
    hand_made({"x": np.zeros(1, np.float32)}, file="a.safetensors")
    root = hand_made({"x": np.ones(1, np.float32)}, file="b.safetensors")
    with pytest.raises(ModelError, match=r"in a\.safetensors and in b\.safetensors"):
        open_checkpoint(root)


def test_index_that_lies_about_a_shard(hand_made):
    root = hand_made({"x": np.zeros(1, np.float32)}, file="a.safetensors")
    weight_map = {"weight_map": {"y": "a.safetensors"}}
    (root / "model.safetensors.index.json").write_text(json.dumps(weight_map))
    with pytest.raises(ModelError, match="has no tensor 'y', though"):
        open_checkpoint(root).view("y")
