"""KV rows of every cache layout, native as with torch: copied bit by bit, and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc import native
from tarragon_hpc.wire.kv import SUM_ABSENT, SUM_NONE
from tarragon_hpc.wire.kv_sums import seal_twin

torch = pytest.importorskip("torch")

from tarragon_hpc.attention.kv_device import DeviceRows  # noqa: E402
from tarragon_hpc.attention.kv_layout import KvGroup, KvLayer, KvLayout  # noqa: E402
from tarragon_hpc.attention.kv_rows import NativeRows, make_rows  # noqa: E402

BOTH = pytest.mark.parametrize(
    "rows_of", [pytest.param(NativeRows, marks=pytest.mark.native), DeviceRows]
)
# Physical order of the logical dimensions [blocks, heads, tokens, content]; "across" like the CPU.
ORDERS = {
    "across": (0, 1, 2, 3),
    "LBHNC": (0, 1, 2, 3),
    "LBNHC": (0, 2, 1, 3),
    "LHBNC": (1, 0, 2, 3),
}
KINDS = (*ORDERS, "across, padded", "BLHNC", "BLNHC", "MLA")


def make_cache(rng, kind, blocks, heads, tokens, dim, dtype):
    """A cache tensor [blocks, heads, tokens, 2 * dim] with random bytes, NaNs and all."""
    shape, size = [blocks, heads, tokens, 2 * dim], dtype.itemsize
    order = ORDERS.get(kind, (0, 2, 1, 3) if kind == "BLNHC" else (0, 1, 2, 3))
    if kind == "MLA":
        shape[1] = 1
    physical = [shape[i] for i in order]
    if kind in ("BLHNC", "BLNHC", "across, padded"):  # other layers' blocks lie between
        physical.insert(1, 3)
    raw = torch.from_numpy(rng.integers(0, 256, np.prod(physical) * size, np.uint8))
    cache = raw.view(dtype).view(physical)
    if len(physical) == 5:
        cache = cache[:, 1]
    return cache.permute([order.index(i) for i in range(4)])


def describe(cache, kind, group):
    size = cache.element_size()
    strides = [s * size for s in cache.stride()]
    return KvLayer(
        name=kind,
        group=group,
        cache=cache,
        keys_across=kind.startswith("across"),
        blocks=cache.shape[0],
        block_tokens=cache.shape[2],
        block_stride=strides[0],
        heads=cache.shape[1],
        head_stride=strides[1] if cache.shape[1] > 1 else cache.shape[3] * size,
        token_stride=strides[2],
        piece_bytes=cache.shape[3] * size,
        itemsize=size,
    )


GROUPS = (KvGroup(8, False), KvGroup(8, True))


def make_layout(seed, kinds, device="cpu"):
    """Layer i is in group i mod 2; shapes and dtypes at random, 12 blocks of 8 tokens each."""
    rng = np.random.default_rng(seed)
    layers = []
    for i, kind in enumerate(kinds):
        dtype = [torch.float32, torch.bfloat16, torch.float8_e4m3fn][rng.integers(3)]
        heads, dim = int(rng.integers(1, 4)), int(rng.choice([4, 12, 32]))
        tokens = 8 if kind.startswith("across") else int(rng.choice([4, 8]))  # kernel blocks
        cache = make_cache(rng, kind, 96 // tokens, heads, tokens, dim, dtype)
        layers.append(describe(cache.to(device), kind, i % 2))
    return KvLayout(tuple(layers), GROUPS)


def random_slots(rng, count, layout, null=0.2):
    """Different slots for each group, mostly in runs; some null blocks where there can be any."""
    chosen = []
    for group in layout.groups:
        slots = np.arange(8, 96).reshape(-1, 4)
        slots = rng.permutation(slots).ravel()[:count]
        if group.evicts:
            gone = rng.random(count) < null
            slots[gone] = rng.integers(0, 8, gone.sum())
        chosen.append(slots.astype(np.int64))
    return chosen


def gather(rows, layout, slots, first=0, layers=None):
    layers = len(layout.layers) - first if layers is None else layers
    count = len(slots[0])
    out = rows.memory(count * sum(layout.row_bytes[first : first + layers]))
    out[:] = 0xAA
    absent = np.full((layers, count), 9, np.uint8)
    rows.gather(rows.locate(slots), first, layers, out, absent)
    rows.finish()
    return out, absent


def token_major(out, layout, count):
    sizes = layout.row_bytes
    cuts = count * np.cumsum(sizes)[:-1]
    parts = [p.reshape(count, n) for p, n in zip(np.split(out, cuts), sizes, strict=True)]
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def sealed(seed, layout, slots):
    """Rows of a cache as a Fetch brings them: (rows, sums, keys, positions)."""
    rng = np.random.default_rng(seed)
    count = len(slots[0])
    out, absent = gather(DeviceRows(layout), layout, slots)
    keys = rng.integers(0, 2**64, count, np.uint64)
    positions = rng.integers(0, 2**32, count, np.uint32)
    sums = np.empty((len(layout.layers), count), np.uint32)
    seal_twin(out, 0, layout.row_bytes, keys, positions, absent, sums, check=True)
    return token_major(out, layout, count), sums.T.copy(), keys, positions


def snapshot(layout):
    return [layer.cache.contiguous().view(torch.uint8).cpu().clone() for layer in layout.layers]


@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_k_and_v_of_each_head(rows_of, kind):
    """Written element by element, as vLLM describes its cache."""
    rng = np.random.default_rng(7)
    cache = make_cache(rng, kind, 4, 2, 8, 4, torch.float32)
    layout = KvLayout((describe(cache, kind, 0),), (KvGroup(8, False),))
    block, offset, width = 2, 5, cache.shape[3]
    expected = []
    for h in range(cache.shape[1]):
        for i in range(width):
            expected.append(1000 * h + i)
            if kind.startswith("across"):
                flat, d = cache[block, h].view(-1), width // 2
                at = i * 8 + offset if i < d else (8 + offset) * d + i - d
                flat[at] = expected[-1]
            else:
                cache[block, h, offset, i] = expected[-1]
    out, absent = gather(rows_of(layout), layout, [np.array([block * 8 + offset])])
    assert out.view(np.float32).tolist() == expected
    assert not absent.any()


@pytest.mark.native
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from(KINDS), min_size=2, max_size=5),
    st.integers(0, 40),
)
def test_native_equals_torch_and_what_is_gathered_is_what_is_scattered(seed, kinds, count):
    rng = np.random.default_rng(seed)
    layout = make_layout(seed, kinds)
    slots = random_slots(rng, count, layout)
    out, absent = gather(NativeRows(layout), layout, slots)
    twin, twin_absent = gather(DeviceRows(layout), layout, slots)
    assert np.array_equal(out, twin)
    assert np.array_equal(absent, twin_absent)
    gone = np.stack([slots[layer.group] < 8 for layer in layout.layers])
    assert np.array_equal(absent, gone)
    assert not token_major(out, layout, count)[gone.all(axis=0)].any()
    first = int(rng.integers(len(kinds)))
    some, _ = gather(NativeRows(layout), layout, slots, first, 1)
    start = count * sum(layout.row_bytes[:first])
    assert np.array_equal(some, out[start : start + some.size])

    rows, sums, keys, positions = sealed(seed, layout, slots)
    elsewhere = random_slots(rng, count, layout, null=0)
    for g, group in enumerate(layout.groups):
        if group.evicts:  # what is absent has no block there either
            elsewhere[g][slots[g] < 8] = slots[g][slots[g] < 8]
    states = []
    for rows_of in (NativeRows, DeviceRows):
        target = make_layout(seed, kinds)  # same shapes, same old contents
        writer = rows_of(target)
        before = snapshot(target)
        assert (
            writer.scatter(writer.locate(elsewhere), rows, sums, keys, positions, check=True) == 0
        )
        back, _ = gather(DeviceRows(target), target, elsewhere)
        assert np.array_equal(back, out)
        states.append(snapshot(target))
        for layer, old, new in zip(target.layers, before, states[-1], strict=True):
            blocks = {int(s) // layer.block_tokens for s in elsewhere[layer.group] if s >= 8}
            for block in set(range(layer.blocks)) - blocks:
                assert torch.equal(old[block], new[block]), "only the blocks named are written"
    for ours, theirs in zip(*states, strict=True):
        assert torch.equal(ours, theirs)


@BOTH
@pytest.mark.parametrize("wrong", ["bit", "key", "position", "layer", "absent", "none"])
def test_bad_rows_are_counted_and_not_written(rows_of, wrong):
    layout = make_layout(3, ["across", "across", "LBNHC"])
    slots = [np.arange(20, 40), np.arange(50, 70)]
    rows, sums, keys, positions = sealed(3, layout, slots)
    expected = 1
    if wrong == "bit":
        rows[6, layout.row_bytes[0] + 3] ^= 16
    elif wrong == "key":
        keys[6], expected = keys[6] + np.uint64(1), 3
    elif wrong == "position":
        positions[6], expected = positions[6] ^ 1, 3
    elif wrong == "layer":
        sums[6, 1] = sums[6, 0]
    else:
        sums[6, 1] = SUM_ABSENT if wrong == "absent" else SUM_NONE
    target = make_layout(3, ["across", "across", "LBNHC"])
    before, writer = snapshot(target), rows_of(target)
    target_slots = [np.arange(40, 60), np.arange(10, 30)]
    located = writer.locate(target_slots)
    assert writer.scatter(located, rows, sums, keys, positions, check=True) == expected
    old = make_layout(3, ["across", "across", "LBNHC"])
    for copy, state in zip(old.layers, before, strict=True):
        assert torch.equal(copy.cache.contiguous().view(torch.uint8), state)
    was, _ = gather(DeviceRows(old), old, target_slots)
    now, _ = gather(DeviceRows(target), target, target_slots)
    was, now = (token_major(x, layout, 20) for x in (was, now))
    start, end = layout.row_bytes[0], sum(layout.row_bytes[:2])
    assert np.array_equal(now[6, start:end], was[6, start:end])
    assert np.array_equal(np.delete(now, 6, 0), np.delete(rows, 6, 0))
    if wrong == "none":
        assert writer.scatter(located, rows, sums, keys, positions, check=False) == 0


@BOTH
def test_what_is_not_wanted_is_not_checked(rows_of):
    layout = make_layout(4, ["across", "LBHNC"])
    slots = [np.arange(8, 12), np.arange(8, 12)]
    rows, sums, keys, positions = sealed(4, layout, slots)
    rows[1, layout.row_bytes[0] :] ^= 0xFF  # of the group that evicts
    sums[2, 1] = SUM_ABSENT
    writer = rows_of(layout)
    located = writer.locate([slots[0], np.array([8, 0, 3, 11])])
    before = snapshot(layout)
    assert writer.scatter(located, rows, sums, keys, positions, check=True) == 0
    for old, new in zip(before, snapshot(layout), strict=True):
        assert torch.equal(old, new)


@BOTH
@pytest.mark.parametrize(
    "slots",
    [
        ([8, 96], [8, 9]),  # beyond the cache
        ([8, -1], [8, 9]),
        ([8, 9], [8, 2**62]),
        ([8, 7], [8, 9]),  # the null block of a group that does not evict
        ([8, 9], [8]),
        ([8, 9],),
    ],
)
def test_slots_outside_the_cache_are_refused(rows_of, slots):
    rows = rows_of(make_layout(5, ["across", "LBNHC"]))
    with pytest.raises(ValueError, match="slots"):
        rows.locate([np.array(s, np.int64) for s in slots])


@BOTH
@pytest.mark.parametrize("field", ["rows", "sums", "keys", "positions", "out", "absent", "layers"])
def test_lengths_have_to_fit(rows_of, field):
    layout = make_layout(6, ["across", "MLA"])
    slots = [np.arange(8, 12), np.arange(16, 20)]
    rows = rows_of(layout)
    located = rows.locate(slots)
    names = ("rows", "sums", "keys", "positions")
    arrays = dict(zip(names, sealed(6, layout, slots), strict=True))
    arrays["out"] = np.zeros(4 * sum(layout.row_bytes), np.uint8)
    arrays["absent"] = np.zeros(8, np.uint8)
    if field in arrays:
        arrays[field] = arrays[field].ravel()[:-1].copy()
    before = snapshot(layout)
    first = int(field == "layers")
    calls = {
        True: lambda: rows.scatter(located, *(arrays[n] for n in names), check=True),
        False: lambda: rows.gather(located, first, 2, arrays["out"], arrays["absent"]),
    }
    with pytest.raises(ValueError, match="instead of|there are only"):
        calls[field in names]()
    for old, new in zip(before, snapshot(layout), strict=True):
        assert torch.equal(old, new)


@pytest.mark.native
def test_native_refuses_slots_of_another_cache_and_senseless_layers():
    layout = make_layout(8, ["across", "LBNHC"])
    slots = [np.arange(8, 12)] * 2
    located = NativeRows(make_layout(8, ["across", "LBNHC"])).locate(slots)
    out = np.zeros(4 * sum(layout.row_bytes), np.uint8)
    with pytest.raises(ValueError, match="other layers"):
        NativeRows(layout).gather(located, 0, 2, out, np.zeros(8, np.uint8))
    good = (0, True, 0, 4, 8, 64, 1, 64, 8, 8, 4)
    native.module.KvLayers([good], [(8, False)])
    for field, value in ((2, 1), (4, 0), (9, 6), (10, 8)):
        layer = (*good[:field], value, *good[field + 1 :])
        with pytest.raises(ValueError, match="layer 0"):
            native.module.KvLayers([layer], [(8, False)])


@pytest.mark.native
def test_the_cpu_cache_is_read_by_native_code():
    assert isinstance(make_rows(make_layout(9, ["across"])), NativeRows)


@pytest.mark.gpu
def test_rows_leave_a_gpu_and_come_back():
    kinds = ["LBNHC", "LBHNC", "MLA", "BLNHC"]
    slots = [np.arange(20, 40), np.arange(4, 24)]
    host, device = make_layout(10, kinds), make_layout(10, kinds, device="cuda")
    rows = make_rows(device)
    assert isinstance(rows, DeviceRows)
    out, absent = gather(rows, device, slots)
    expected, expected_absent = gather(DeviceRows(host), host, slots)
    assert np.array_equal(out, expected)
    assert np.array_equal(absent, expected_absent)
    parts = sealed(10, host, slots)
    elsewhere = [np.arange(60, 80), np.array([*range(4, 8), *range(70, 86)])]
    assert rows.scatter(rows.locate(elsewhere), *parts, check=True) == 0
    back, _ = gather(rows, device, elsewhere)
    assert np.array_equal(back, expected)
