"""Every parser under hostile input: what fuzzing has found before, and a bounded number of new
inputs. `make fuzz SECONDS=600` looks for longer, guided by coverage.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tarragon_hpc.errors import FrameError
from tarragon_hpc.wire import codec, kv, parse
from tests.fuzz.target import all_targets

TARGETS = all_targets()
NAMES = [
    pytest.param(name, marks=[pytest.mark.native] if name == "tcp_link" else []) for name in TARGETS
]
CORPUS = Path(__file__).with_name("corpus")
CORPUS_BYTES = 200 << 10
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1]

numbers = st.tuples(st.sampled_from(EXTREMES), st.sampled_from([1, 2, 4, 8]), st.booleans())
places = st.integers(0, 4095)
edits = st.one_of(
    st.tuples(st.just("number"), places, numbers),
    st.tuples(st.just("byte"), places, st.integers(0, 255)),
    st.tuples(st.just("cut"), places, st.integers(1, 64)),
    st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=16)),
    st.tuples(st.just("repeat"), places, st.integers(1, 64)),
)


def edited(base, changes):
    """The same bytes with some changes."""
    data = bytearray(base)
    for what, place, how in changes:
        at = place % (len(data) + 1)
        match what:
            case "number":
                value, width, little = how
                order = "little" if little else "big"
                data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, order)
            case "byte":
                data[at : at + 1] = bytes([how])
            case "cut":
                del data[at : at + how]
            case "insert":
                data[at:at] = how
            case "repeat":
                data[at:at] = data[at : at + how] * 3
    return bytes(data)


def corpus(name):
    return sorted((CORPUS / name).iterdir()) if (CORPUS / name).is_dir() else []


@pytest.mark.parametrize("name", NAMES)
def test_known_inputs(name):
    for seed in TARGETS[name].seeds():
        TARGETS[name].run(seed)
    for path in corpus(name):
        TARGETS[name].run(path.read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_new_inputs(name):
    target = TARGETS[name]
    bases = target.seeds() + [path.read_bytes() for path in corpus(name)]
    inputs = st.builds(edited, st.sampled_from(bases), st.lists(edits, max_size=6))

    @settings(
        max_examples=200,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs | st.binary(max_size=200))
    def run(data):
        target.run(data)

    run()


def test_the_corpus_is_small_and_of_todays_targets():
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} <= set(TARGETS)
    assert sum(path.stat().st_size for path in files) < CORPUS_BYTES


def careless_feed(self, data):
    """A decoder without limit or care."""
    self._buffer += data
    size = int.from_bytes(self._buffer[:4], "big")
    yield self._decoder.decode(bytes(self._buffer[4 : 4 + size]))


def careless_runs(data, header):
    end = kv.HEADER_BYTES + kv.RUN_BYTES * header.runs
    return [kv.Run(*fields) for fields in kv._RUN.iter_unpack(data[kv.HEADER_BYTES : end])]


def careless_dispatch(slot, capacity):
    try:
        header = parse.unpack_request_header(slot)
    except FrameError as error:
        raise ValueError(str(error)) from None
    return header, [], parse.address_of(slot) + len(slot), b"", 0, 4, 0


@pytest.mark.parametrize(
    ("name", "owner", "attribute", "careless"),
    [
        ("control_to_head", codec.FrameDecoder, "feed", careless_feed),
        ("kv_frame", kv, "unpack_runs", careless_runs),
        ("dispatch", parse, "_parse", careless_dispatch),
    ],
)
def test_a_careless_parser_is_found_out(monkeypatch, name, owner, attribute, careless):
    monkeypatch.setattr(owner, attribute, careless)
    with pytest.raises(BaseException):  # noqa: B017, PT011  # one, or a group of several
        test_new_inputs(name)
