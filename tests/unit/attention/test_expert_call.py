"""Which rows go out, and what is left of a step when they do not come back."""

import pytest

from tarragon_hpc.errors import DeadlineExceeded, PeerLost

torch = pytest.importorskip("torch")

from tarragon_hpc.attention.expert_call import ExpertCalls  # noqa: E402
from tarragon_hpc.attention.host_memory import CpuMemory  # noqa: E402

H, K = 4, 2


class Doubling:
    """A forwarder whose experts double their rows; raises what `fail` says, by call."""

    def __init__(self):
        self.fail = {}
        self.dispatched = []

    def dispatch(self, layer, rows, hidden, topk_ids):
        if error := self.fail.get("dispatch"):
            raise error
        self.dispatched.append((layer, rows))
        return rows, hidden

    def combine(self, ticket, weights, out):
        if error := self.fail.get("combine"):
            raise error
        rows, hidden = ticket
        floats(out, rows).copy_(2 * floats(hidden, rows))


def floats(address, rows):
    import ctypes

    memory = (ctypes.c_char * (rows * H * 4)).from_address(address)
    return torch.frombuffer(memory, dtype=torch.float32).view(rows, H)


@pytest.fixture
def forwarder():
    return Doubling()


def make(forwarder, real_rows=lambda padded: padded, serving=True):
    calls = ExpertCalls(forwarder, CpuMemory(), real_rows)
    calls.serving = serving
    return calls


def run(calls, hidden, layer=3):
    rows = hidden.shape[0]
    ids = torch.zeros(rows, K, dtype=torch.int64)
    call = calls.dispatch(layer, hidden, ids, torch.ones(rows, K, dtype=torch.bfloat16))
    return calls.combine(call, hidden)


def test_all_rows_go_out_and_come_back(forwarder):
    hidden = torch.randn(5, H)
    assert torch.equal(run(make(forwarder), hidden), 2 * hidden)
    assert forwarder.dispatched == [(3, 5)]


def test_rows_that_lie_apart_in_memory_go_out_as_well(forwarder):
    hidden = torch.randn(5, 2 * H)[:, ::2]
    assert torch.equal(run(make(forwarder), hidden), 2 * hidden)


def test_padding_stays_here_and_is_zero_afterwards(forwarder):
    hidden = torch.randn(5, H)
    out = run(make(forwarder, real_rows=lambda padded: 3), hidden)
    assert torch.equal(out[:3], 2 * hidden[:3])
    assert not out[3:].any()
    assert forwarder.dispatched == [(3, 3)]


@pytest.mark.parametrize("options", [{"serving": False}, {"real_rows": lambda padded: 0}])
def test_dry_runs_stay_here(options, forwarder):
    assert not run(make(forwarder, **options), torch.randn(5, H)).any()
    assert forwarder.dispatched == []


@pytest.mark.parametrize("where", ["dispatch", "combine"])
def test_the_step_is_lost_once_a_call_fails(where, forwarder):
    calls = make(forwarder)
    error = forwarder.fail[where] = PeerLost("ew0", "killed")
    assert not run(calls, torch.randn(2, H)).any()
    forwarder.fail.clear()
    tried = len(forwarder.dispatched)
    assert not run(calls, torch.randn(2, H)).any(), "the rest of the step is not worth a call"
    assert len(forwarder.dispatched) == tried
    assert calls.take_loss() is error
    hidden = torch.randn(2, H)
    assert torch.equal(run(calls, hidden), 2 * hidden), "the next step starts clean"
    assert calls.take_loss() is None


def test_the_first_loss_is_the_reason(forwarder):
    calls = make(forwarder)
    forwarder.fail["combine"] = first = DeadlineExceeded("ew0", 1.0)
    run(calls, torch.randn(1, H))
    forwarder.fail["combine"] = PeerLost("ew1", "killed")
    run(calls, torch.randn(1, H))
    assert calls.take_loss() is first


def test_other_errors_are_bugs_and_not_swallowed(forwarder):
    forwarder.fail["combine"] = IndexError("a bug")
    with pytest.raises(IndexError):
        run(make(forwarder), torch.randn(1, H))
