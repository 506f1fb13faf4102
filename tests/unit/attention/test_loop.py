"""The AW's loop between a scripted engine, a scripted REFE and the head's messages."""

import queue
import time
from dataclasses import replace

import pytest

from tarragon_hpc.attention.found import Found
from tarragon_hpc.attention.loop import ServingLoop
from tarragon_hpc.attention.step import Step
from tarragon_hpc.datapath.report import Clearance, Failover, Suspicion
from tarragon_hpc.datapath.stats import RefeStats
from tarragon_hpc.errors import ExpertUnavailable, PeerLost, RequestError
from tarragon_hpc.ids import Incarnation
from tarragon_hpc.wire import to_head, to_worker
from tarragon_hpc.wire.common import Peer, Resumption, SamplingSpec, TokenDelta

WHO = Incarnation("aw0", 2)
SAMPLING = SamplingSpec(max_tokens=2)


class ScriptedEngine:
    """Every sequence has two tokens, one a step; `losses` are raised by the next steps."""

    def __init__(self):
        self.left = {}
        self.losses = []
        self.aborted = []
        self.added = []
        self.moved = []
        self.stores = None
        self.looks = []

    @property
    def has_work(self):
        return bool(self.left)

    def add(self, request, prompt, sampling, attempt=1, tokens=(), found=None):
        if not prompt:
            raise RequestError("prompt: must have at least one token", param="prompt")
        self.left[request] = 2
        self.added.append((request, attempt, list(tokens), found))

    def set_stores(self, peers):
        self.stores = list(peers)

    def look(self, request, attempt, done):
        self.looks.append((request, attempt, done))
        return bool(self.stores)

    def abort(self, requests, *, moved=False):
        self.aborted += requests
        self.moved += requests if moved else []
        for request in requests:
            self.left.pop(request, None)

    def step(self):
        if self.losses:
            failed, self.left = list(self.left), {}
            return Step(failed=failed, loss=self.losses.pop(0))
        tokens = [TokenDelta(request, 2 - n, [n]) for request, n in self.left.items()]
        self.left = {request: n - 1 for request, n in self.left.items() if n > 1}
        return Step(tokens)

    def stats(self):
        return {"running": len(self.left)}


class ScriptedRefe:
    def __init__(self):
        self.epoch = 0
        self.stats = RefeStats(rows=7)

    def apply_table(self, ert, peers):
        self.epoch, self.peers = ert.epoch, peers
        return {}


class Aw:
    """A loop, and what is left of it in the end."""

    def __init__(self):
        self.engine, self.refe = ScriptedEngine(), ScriptedRefe()
        self.inbox = queue.SimpleQueue()
        self.sent, self.numbers = [], []
        self.loop = ServingLoop(
            WHO, self.engine, self.refe, self.inbox, self.sent.append, self.numbers.append
        )

    def run(self, *messages):
        for message in messages:
            self.inbox.put(message)
        return self.loop.run()

    def of(self, kind):
        return [message for message in self.sent if isinstance(message, kind)]


def table(epoch=1):
    peers = [Peer("ew0", 5, {"kind": "shm"}), Peer("ew1", 6, {"kind": "shm"})]
    return to_worker.Table(epoch, [["ew0"], ["ew1"]], peers)


def submit(request="r", prompt=(1, 2)):
    return to_worker.Submit(request, list(prompt), SAMPLING)


DRAIN, SHUTDOWN = to_worker.Drain("the run ends"), to_worker.Shutdown("now")


def test_a_table_is_applied_and_confirmed():
    aw = Aw()
    assert aw.run(table(4), SHUTDOWN) == "now"
    assert aw.sent == [to_head.TableApplied("aw0", 2, 4)]
    assert aw.refe.epoch == 4
    assert set(aw.refe.peers) == {"ew0", "ew1"}


def test_every_step_is_one_message_and_drain_finishes_what_runs():
    aw = Aw()
    assert aw.run(table(), submit("a"), submit("b"), DRAIN) == "the run ends"
    first, second = aw.of(to_head.Tokens)
    assert [(d.request, d.index) for d in first.items] == [("a", 0), ("b", 0)]
    assert [(d.request, d.index) for d in second.items] == [("a", 1), ("b", 1)]
    assert (first.worker, first.incarnation) == WHO


def test_what_comes_while_draining_fails_with_the_reason():
    aw = Aw()
    aw.run(table(), submit("a"), DRAIN, submit("late"))
    (failed,) = aw.of(to_head.Failed)
    assert failed.requests == ["late"]
    assert "the run ends" in failed.reason
    assert len(aw.of(to_head.Tokens)) == 2


def test_shutdown_drops_what_runs():
    aw = Aw()
    assert aw.run(table(), submit(), SHUTDOWN) == "now"
    assert aw.of(to_head.Tokens) == []


def test_a_request_that_cannot_run_is_refused_with_its_field():
    aw = Aw()
    aw.run(table(), submit("bad", ()), DRAIN)
    problem = "prompt: must have at least one token"
    assert aw.of(to_head.Refused) == [to_head.Refused("aw0", 2, "bad", problem, "prompt")]


def test_a_request_before_the_first_table_fails_at_once():
    aw = Aw()
    aw.run(submit("early"), DRAIN)
    assert aw.sent == [to_head.Failed("aw0", 2, ["early"], "aw0 has no routing table yet")]


def test_an_aborted_sequence_says_nothing_more():
    aw = Aw()
    aw.run(table(), submit("a"), submit("b"), to_worker.Abort(["a", "unknown"]), DRAIN)
    assert {d.request for m in aw.of(to_head.Tokens) for d in m.items} == {"b"}
    assert aw.engine.aborted == ["a", "unknown"]


def test_what_the_refe_reports_goes_to_the_head_at_once():
    aw = Aw()
    now = time.monotonic()
    aw.loop.report(Suspicion("ew1", 6, "killed"))
    aw.loop.report(Failover("ew1", 6, "lost", now - 3.0, now - 2.0, now - 1.0, 40))
    aw.loop.report(Clearance("ew1", 6))
    suspect, masked, cleared = aw.sent
    assert suspect == to_head.Suspect("aw0", 2, "ew1", 6, "killed")
    assert cleared == to_head.Cleared("aw0", 2, "ew1", 6)
    assert (masked.peer, masked.peer_incarnation, masked.how, masked.pairs) == (
        "ew1",
        6,
        "lost",
        40,
    )
    ago = (masked.detected_ago_s, masked.rerouted_ago_s, masked.answered_ago_s)
    assert ago == pytest.approx((3.0, 2.0, 1.0), abs=0.5)


def test_in_the_middle_of_a_step_tables_are_taken_and_the_rest_is_kept_in_order():
    aw = Aw()
    aw.engine.step = feed(
        aw, aw.engine.step, [submit("b"), table(2), to_worker.Abort(["a"]), DRAIN]
    )
    inner = aw.engine.step

    def step():
        outcome = inner()
        assert aw.loop.poll() is None
        assert aw.refe.epoch == 2
        return outcome

    aw.engine.step = step
    aw.run(table(1), submit("a"))
    assert [t.epoch for t in aw.of(to_head.TableApplied)] == [1, 2]
    assert aw.engine.aborted == ["a"]
    assert {d.request for m in aw.of(to_head.Tokens) for d in m.items} == {"a", "b"}


def test_a_step_that_waits_is_given_up_for_a_shutdown():
    aw = Aw()
    aw.inbox.put(SHUTDOWN)
    assert aw.loop.poll() == "now"
    assert aw.loop.run() == "now"


def test_an_expert_nobody_holds_is_nobodys_fault():
    aw = Aw()
    aw.engine.losses = [ExpertUnavailable((3,), "no worker holds it")]
    aw.run(table(), submit(), DRAIN)
    assert len(aw.of(to_head.Failed)) == 1


def test_the_engine_goes_on_after_a_lost_step():
    aw = Aw()
    aw.engine.losses = [PeerLost("ew1", "killed")]
    aw.engine.step = feed(aw, aw.engine.step, [submit("b"), DRAIN])
    aw.run(table(), submit("a"))
    assert [m.requests for m in aw.of(to_head.Failed)] == [["a"]]
    assert {d.request for m in aw.of(to_head.Tokens) for d in m.items} == {"b"}


def test_what_an_engine_refuses_later_on_is_told():
    aw = Aw()
    error = RequestError("response_format: no", param="response_format")
    steps = [Step(refused={"a": error}), Step()]
    aw.engine.step = lambda: aw.engine.left.clear() or steps.pop(0)
    aw.run(table(), submit("a"), DRAIN)
    assert aw.of(to_head.Refused) == [
        to_head.Refused("aw0", 2, "a", "response_format: no", "response_format")
    ]


def feed(aw, step, messages):
    """Messages that arrive during the next step."""

    def wrapped():
        while messages:
            aw.inbox.put(messages.pop(0))
        return step()

    return wrapped


def test_numbers_are_published_when_idle():
    aw = Aw()
    aw.run(table(), DRAIN)
    assert aw.numbers[-1]["running"] == 0
    assert aw.numbers[-1]["refe_rows"] == 7


def test_a_sequence_begun_elsewhere_is_looked_for_before_it_is_added():
    aw = Aw()
    peers = [Peer("cs0", 1, {"kind": "shm"})]
    again = to_worker.Submit("r", [1, 2], SAMPLING, attempt=2, tokens=[7])
    found = Found("r", 2, {}, (), "unknown")

    def look(request, attempt, done):
        done(Found("r", 1, {}, (), "of an older attempt"))
        done(found)
        return True

    aw.engine.look = look
    aw.run(to_worker.Stores(peers), table(), again, DRAIN)
    assert aw.engine.stores == peers
    assert aw.engine.added == [("r", 2, [7], found)]


def test_without_stores_it_is_added_at_once():
    aw = Aw()
    aw.run(table(), to_worker.Submit("r", [1, 2], SAMPLING, attempt=2, tokens=[7]), DRAIN)
    assert aw.engine.added == [("r", 2, [7], None)]


def test_what_is_aborted_during_the_look_is_never_added():
    aw = Aw()
    aw.engine.stores = ["some"]
    again = to_worker.Submit("r", [1, 2], SAMPLING, attempt=2)
    late = Found("r", 2, {}, (), "")
    aw.run(table(), again, to_worker.Abort(["r"], moved=True), late, DRAIN)
    assert aw.engine.added == []
    assert aw.engine.moved == ["r"]


def test_a_resumption_is_told_before_the_tokens_it_comes_with():
    aw = Aw()
    resumption = Resumption("r", 2, 3, 0, 1, 99, 0.5, "")
    step = aw.engine.step
    aw.engine.step = lambda: replace(step(), resumed=[resumption])
    aw.run(table(), submit(), DRAIN)
    kinds = [type(m) for m in aw.sent if isinstance(m, to_head.Resumed | to_head.Tokens)]
    assert kinds[:2] == [to_head.Resumed, to_head.Tokens]
    assert aw.of(to_head.Resumed)[0] == to_head.Resumed(*WHO, resumption)


def test_while_all_wait_for_something_the_loop_sleeps_and_hears():
    aw = Aw()
    waits = []

    def step():
        waits.append(time.monotonic())
        if len(waits) == 5:
            aw.inbox.put(SHUTDOWN)
        return Step(idle=True)

    aw.engine.step = step
    assert aw.run(table(), submit()) == "now"
    assert waits[4] - waits[0] >= 4 * 0.0009


def test_only_a_missing_expert_is_missing_everywhere():
    aw = Aw()
    aw.engine.losses = [PeerLost("ew1", "killed")]
    aw.run(table(), submit(), DRAIN)
    assert [f.again for f in aw.of(to_head.Failed)] == [True]
    aw = Aw()
    aw.engine.losses = [ExpertUnavailable((3,), "nobody")]
    aw.run(table(), submit(), DRAIN)
    assert [f.again for f in aw.of(to_head.Failed)] == [False]
