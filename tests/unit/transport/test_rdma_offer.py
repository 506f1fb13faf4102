"""The peer's queue pairs and ring are its word: checked before anything is connected."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.errors import ConnectFailed
from tarragon_hpc.transport.rdma_offer import Offer, decode, encode

OFFER = Offer(
    fabric="roce",
    gid="0000:0000:0000:0000:0000:ffff:0a4d:0001",
    lid=0,
    mtu=4096,
    data=17,
    data_psn=0,
    control=18,
    control_psn=(1 << 24) - 1,
    ring=1 << 47,
    rkey=(1 << 32) - 1,
)
RING_BYTES = 1 << 20


def test_an_offer_comes_back_as_it_was():
    assert decode(encode(OFFER), "roce", RING_BYTES) == OFFER


@pytest.mark.parametrize("field", Offer.__struct_fields__)
def test_a_missing_field_is_named(field):
    fields = encode(OFFER)
    del fields[field]
    with pytest.raises(ConnectFailed, match=f"`{field}`"):
        decode(fields, "roce", RING_BYTES)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data", "0"),
        ("data", str(1 << 24)),
        ("data", "-1"),
        ("control", "0x11"),
        ("control", ""),
        ("data_psn", str(1 << 24)),
        ("control_psn", "-1"),
        ("lid", "65536"),
        ("mtu", "1500"),
        ("mtu", "0"),
        ("gid", "::"),
        ("gid", "10.0.0.1"),
        ("gid", "fe80::1%eth0"),
        ("ring", "0"),
        ("ring", str((1 << 40) + 8)),
        ("ring", str(1 << 64)),
        ("ring", str((1 << 63) - 64)),
        ("rkey", str(1 << 32)),
        ("rkey", "key"),
        ("fabric", "ib:fe80000000000000"),
        ("unheard_of", "1"),
    ],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(ConnectFailed, match=field):
        decode(encode(OFFER) | {field: value}, "roce", RING_BYTES)


def test_on_infiniband_there_is_a_lid():
    ib = "ib:fe80000000000000"
    fields = encode(OFFER) | {"fabric": ib}
    with pytest.raises(ConnectFailed, match="lid"):
        decode(fields, ib, RING_BYTES)
    assert decode(fields | {"lid": "3"}, ib, RING_BYTES).lid == 3


@given(st.dictionaries(st.sampled_from([*Offer.__struct_fields__, "x"]), st.text(max_size=30)))
def test_anything_else_is_a_failed_connect(fields):
    try:
        offer = decode(encode(OFFER) | fields, "roce", RING_BYTES)
    except ConnectFailed:
        return
    assert encode(offer).keys() == encode(OFFER).keys()
    assert 0 < offer.data < 1 << 24
    assert offer.ring % 64 == 0
