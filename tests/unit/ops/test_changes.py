"""Experts that come and go while a bank is in use: the bits of the others stay what they are."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest

from tarragon_hpc.errors import ModelError
from tarragon_hpc.models.spec import ExpertShape
from tarragon_hpc.ops.reference import Rows, encode, random_expert

SILU = ExpertShape(hidden=72, ffn=130)
OAI = ExpertShape(hidden=72, ffn=130, activation="swigluoai", bias=True)
LAYERS = (0, 3)


@pytest.fixture(params=[pytest.param("Native", marks=pytest.mark.native), "Torch"])
def make_bank(request):
    if request.param == "Native":
        from tarragon_hpc.ops.native_bank import NativeBank

        yield NativeBank
        return
    torch = pytest.importorskip("torch")
    from tarragon_hpc.ops.torch_bank import TorchBank

    threads = torch.get_num_threads()
    yield TorchBank
    torch.set_num_threads(threads)


def experts(shape, dtype, ids, seed=0):
    return {
        (layer, e): random_expert(shape, dtype, np.random.default_rng([seed, layer, e]))
        for layer in LAYERS
        for e in ids
    }


def outputs(bank, shape, dtype, ids):
    """What experts of a bank make of some rows, in one batch per layer."""
    rng = np.random.default_rng(1)
    x = encode(rng.standard_normal((20, shape.hidden), np.float32), dtype)
    found = {}
    for layer in LAYERS:
        batch = [Rows(e, x, rng.integers(0, 20, 7)) for e in range(10)]
        bank.run(layer, [rows.segment() for rows in batch if rows.expert in ids])
        found |= {(layer, rows.expert): rows.y.tobytes() for rows in batch if rows.expert in ids}
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [SILU, OAI], ids=str)
def test_the_bits_do_not_depend_on_when_an_expert_came(make_bank, shape, dtype):
    everything = outputs(make_bank(experts(shape, dtype, range(6)), shape), shape, dtype, range(6))
    bank = make_bank(experts(shape, dtype, [0, 4]), shape)

    def check(*ids):
        assert bank.experts() == set(ids)
        assert bank.nbytes() == len(ids) * each
        assert outputs(bank, shape, dtype, ids) == {
            at: y for at, y in everything.items() if at[1] in ids
        }

    each = bank.nbytes() // 2
    check(0, 4)
    bank.add(bank.prepare(experts(shape, dtype, [1, 5])))
    check(0, 1, 4, 5)
    bank.remove([0, 1, 9])
    check(4, 5)
    bank.add(bank.prepare(experts(shape, dtype, [1, 2])))
    check(1, 2, 4, 5)
    bank.remove([1, 2, 4, 5])
    check()
    bank.add(bank.prepare(experts(shape, dtype, [3])))
    check(3)


def test_what_was_removed_is_refused_before_anything_is_written(make_bank):
    bank = make_bank(experts(SILU, "float32", [0, 1]), SILU)
    bank.remove([1])
    x = encode(np.ones((2, SILU.hidden)), "float32")
    good, gone = Rows(0, x), Rows(1, x)
    with pytest.raises(KeyError, match="layer 3 expert 1 is not loaded"):
        bank.run(3, [good.segment(), gone.segment()])
    assert not good.y.any()


def test_memory_of_what_was_removed_or_replaced_is_released(make_bank):
    bank = make_bank(experts(SILU, "float32", [0, 1]), SILU)
    more = experts(SILU, "float32", [2, 3])
    watched = [weakref.ref(more[at].up) for at in sorted(more)]
    bank.add(bank.prepare(more))
    del more
    assert all(ref() is not None for ref in watched)
    bank.remove([2])
    assert [ref() is None for ref in watched] == [True, False] * len(LAYERS)
    bank.add(bank.prepare(experts(SILU, "float32", [3], seed=1)))
    assert all(ref() is None for ref in watched)
    expected = make_bank(experts(SILU, "float32", [3], seed=1), SILU)
    assert outputs(bank, SILU, "float32", [3]) == outputs(expected, SILU, "float32", [3])


def test_what_does_not_fit_is_refused_and_changes_nothing(make_bank):
    bank = make_bank(experts(SILU, "float32", [0]), SILU)
    other = experts(SILU, "float16", [1])
    with pytest.raises(ModelError, match="layer 0 expert 1: is float16, those that run are float"):
        bank.prepare(other)
    wrong = {
        at: replace(t, up=t.up[:, :-1].copy()) for at, t in experts(SILU, "float32", [1]).items()
    }
    with pytest.raises(ModelError, match="layer 0 expert 1: up has shape"):
        bank.prepare(wrong)
    assert bank.experts() == {0}
