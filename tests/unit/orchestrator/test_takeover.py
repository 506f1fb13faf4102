"""A change of the head: what becomes of times, workers, incarnations; what a returned worker is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarragon_hpc.config import load_config
from tarragon_hpc.ids import Role
from tarragon_hpc.orchestrator import actions as ac
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.apply import replay
from tarragon_hpc.orchestrator.changes import availability, diff
from tarragon_hpc.orchestrator.plan import plan
from tarragon_hpc.orchestrator.policy import Policy
from tarragon_hpc.orchestrator.state import GONE, Phase, RunPhase
from tarragon_hpc.orchestrator.status import worker_word
from tarragon_hpc.orchestrator.takeover import leftovers
from tarragon_hpc.wire.common import Standing, Unanswered
from tests.unit.orchestrator.simulation import World

POLICY = Policy(start_timeout_s=100, head_lease_s=20)
AW = Standing(
    welcomed=True, detail={"kv_blocks": 7}, table_sent=1, table_applied=1, stores={"cs0": 1}
)
EW0 = Standing(welcomed=True, experts=[0, 1], detail={"experts": [0, 1]}, holds=[0, 1])
EW1 = Standing(welcomed=True, experts=[2, 3], detail={"experts": [2, 3]}, holds=[2, 3])


def change(scenario, head: int = 2, shift: float = 0.0, **claims: int):
    return scenario.happen(ev.HeadChanged, head, {head - 1: len(scenario.events)}, shift, claims)


def come(scenario, worker: str, standing: Standing, incarnation: int = 1):
    where = (200, "host", {"shm": f"/s/{worker}"})
    return scenario.happen(ev.WorkerReturned, worker, incarnation, *where, standing)


def test_everybody_that_may_run_is_awaited_and_counts_as_before(scenario):
    scenario.running()
    scenario.happen(ev.WorkerExited, "ew1", 1, "killed by SIGKILL")
    change(scenario)
    assert [w.awaited for w in scenario.state.workers.values()] == [True, True, True, False]
    assert scenario["ew0"].serves_experts
    assert worker_word(scenario["ew0"]) == "awaited"
    assert not availability(scenario.state).serving
    # Nothing is sent to nobody; the dead one is routed around and replaced.
    kinds = {type(a).__name__ for a in plan(scenario.state, scenario.now, POLICY)}
    assert kinds <= {"Publish", "Fence"}
    before = scenario.state
    after = come(scenario, "aw0", AW)
    assert scenario["aw0"].serves
    assert [type(c).__name__ for c in diff(before, after)] == ["AttentionServing", "Availability"]


def test_times_are_moved_to_the_clock_of_the_new_head_and_never_into_its_future(scenario):
    scenario.running()
    was = scenario["ew0"].since
    change(scenario, shift=-1000.0)
    assert scenario["ew0"].since == was - 1000.0
    scenario.happen(ev.HeadChanged, 3, {}, 1e6)
    assert scenario["ew0"].since == scenario.state.changed == scenario.now


def test_who_does_not_come_in_time_is_condemned_and_replaced_by_somebody_new(scenario):
    scenario.running()
    change(scenario, ew0=5)
    for worker, standing in {"aw0": AW, "aw1": AW, "ew1": EW1}.items():
        come(scenario, worker, standing)
    late = scenario.state.changed + POLICY.head_lease_s
    assert not any(isinstance(a, ac.Condemn) for a in plan(scenario.state, late, POLICY))
    (condemn,) = plan(scenario.state, late + 0.1, POLICY)
    assert (condemn.worker, condemn.how) == ("ew0", ev.TIME)
    scenario.happen(ev.WorkerLost, "ew0", 1, condemn.how, condemn.reason)
    assert come(scenario, "ew0", EW0).stale == 1
    scenario.happen(ev.WorkerFenced, "ew0", 1)
    scenario.happen(ev.TablePublished, 2, [[], [], ["ew1"], ["ew1"]])
    for worker in ("aw0", "aw1"):
        scenario.happen(ev.TableSent, worker, 1, 2)
    starts = [a for a in plan(scenario.state, scenario.now, POLICY) if isinstance(a, ac.Start)]
    assert [(a.worker, a.incarnation) for a in starts] == [("ew0", 6)]


def test_in_a_run_that_stops_nobody_is_awaited_for_long(scenario):
    scenario.running()
    scenario.happen(ev.StopBegan, "asked", False)
    change(scenario)
    late = scenario.now + POLICY.stop_grace_s + POLICY.exit_limit_s + 1
    assert {type(a) for a in plan(scenario.state, late, POLICY)} == {ac.Condemn}


@pytest.mark.parametrize(
    ("standing", "phase"),
    [
        (Standing(), Phase.REGISTERED),
        (Standing(welcomed=True, experts=[0, 1]), Phase.LOADING),
        (EW0, Phase.SERVING),
        (Standing(welcomed=True, detail={}, leaving=True), Phase.STOPPING),
    ],
)
def test_a_worker_is_what_it_says_whatever_the_journal_says(scenario, standing, phase):
    scenario.running()
    change(scenario)
    come(scenario, "ew0", standing)
    assert (scenario["ew0"].phase, scenario["ew0"].awaited) == (phase, False)
    loading = {0, 1} if phase is Phase.LOADING else set()
    assert scenario["ew0"].loading == loading


def test_orders_that_it_has_not_answered_are_still_to_be_answered(scenario):
    scenario.running()
    change(scenario)
    orders = [Unanswered(False, [1]), Unanswered(True, [2])]
    come(scenario, "ew0", Standing(welcomed=True, detail={}, holds=[0, 1, 99], orders=orders))
    ew0 = scenario["ew0"]
    assert (ew0.holds, ew0.dropping, ew0.loading) == ({0}, {1}, {2})
    scenario.happen(ev.HoldingReported, "ew0", 1, [0])
    scenario.happen(ev.HoldingReported, "ew0", 1, [0, 2])
    assert (scenario["ew0"].holds, scenario["ew0"].orders) == ({0, 2}, ())


def test_a_table_of_a_superseded_head_is_outdone(scenario):
    scenario.running()
    change(scenario)
    come(scenario, "aw0", Standing(welcomed=True, detail={}, table_sent=7, table_applied=7))
    assert scenario.state.epoch == 8
    come(scenario, "aw1", AW)
    sent = [a for a in plan(scenario.state, scenario.now, POLICY) if isinstance(a, ac.SendTable)]
    assert [a.worker for a in sent] == ["aw0", "aw1"]


def test_who_was_told_to_leave_and_has_not_heard_it_is_told_again(scenario):
    scenario.running()
    scenario.happen(ev.WorkerRetired, "aw1", 1, "aw=1")
    scenario.happen(ev.WorkerDrained, "aw1", 1, "aw=1")
    change(scenario)
    come(scenario, "aw0", AW)
    come(scenario, "aw1", AW)
    assert not scenario["aw1"].draining
    assert any(
        isinstance(a, ac.Drain) and a.worker == "aw1"
        for a in plan(scenario.state, scenario.now, POLICY)
    )


def test_a_process_that_the_journal_does_not_know_is_not_let_in(scenario):
    """The head had started it and died before it could write that down."""
    scenario.started("aw0", "aw1", "ew0")
    change(scenario)
    where = (100, "host", {})
    assert scenario.happen(ev.WorkerRegistered, "ew1", 1, *where).stale == 1
    starts = [a for a in plan(scenario.state, scenario.now, POLICY) if isinstance(a, ac.Start)]
    assert [(a.worker, a.incarnation) for a in starts] == [("ew1", 2)]
    scenario.happen(ev.WorkerRegistered, "ew0", 1, *where)
    assert (scenario["ew0"].phase, scenario["ew0"].awaited) == (Phase.REGISTERED, False)


@pytest.mark.parametrize("ran", [True, False])
def test_a_handed_over_run_is_revived_with_all_places_filled_anew(scenario, ran):
    scenario.running() if ran else scenario.started().registered()
    scenario.happen(ev.WorkerRetired, "aw1", 1, "aw=1")
    scenario.happen(ev.StopBegan, "the time limit is near", False, True)
    scenario.happen(ev.WorkerExited, "aw0", 1, "exit status 0")
    left = {w.worker for w in leftovers(scenario.state)}
    assert left == {"aw1", "ew0", "ew1"}
    change(scenario)
    state = scenario.state
    assert state.phase is (RunPhase.RUNNING if ran else RunPhase.STARTING)
    assert (state.handover, state.reviving, set(state.workers)) == (
        False, True, {"aw0", "ew0", "ew1"},
    )  # fmt: skip
    assert state.removed["aw1"] == 2
    assert not availability(state).serving
    for worker in ("aw0", "ew0", "ew1"):
        scenario.happen(ev.WorkerStarted, worker, 3, 100)
        scenario.happen(ev.WorkerRegistered, worker, 3, 100, "host", {})
        told = sorted(state.placement.of(worker))
        scenario.happen(ev.WorkerWelcomed, worker, 3, told)
    scenario.happen(ev.WorkerReady, "ew0", 3, {})
    # Nothing is loaded elsewhere because the other one is not there yet.
    assert plan(scenario.state, scenario.now, POLICY) == []
    scenario.happen(ev.WorkerReady, "ew1", 3, {})
    (publish,) = plan(scenario.state, scenario.now, POLICY)
    assert publish.epoch == state.epoch + 1
    scenario.happen(ev.TablePublished, publish.epoch, [list(row) for row in publish.table])
    assert not scenario.state.reviving
    assert all(w.restarts == () for w in scenario.state.workers.values())


@pytest.mark.parametrize("published", [False, True])
def test_who_died_with_the_head_during_the_start_is_replaced(scenario, published):
    """Else it would be a sign that the run cannot start."""
    scenario.started().registered().loading().ready()
    if published:
        scenario.published()
    change(scenario)
    assert scenario.state.phase is RunPhase.STARTING
    for worker in ("aw0", "ew0", "ew1"):
        scenario.happen(ev.WorkerExited, worker, 1, "killed by SIGKILL")
    table = [[]] * 4
    if published:
        actions = plan(scenario.state, scenario.now, POLICY)
        (publish,) = [a for a in actions if isinstance(a, ac.Publish)]
        scenario.happen(ev.TablePublished, 2, table)
    starts = [a for a in plan(scenario.state, scenario.now, POLICY) if isinstance(a, ac.Start)]
    assert [(a.worker, a.incarnation) for a in starts] == [("aw0", 3), ("ew0", 3), ("ew1", 3)]
    late = scenario.state.since + POLICY.start_timeout_s + 1
    for worker in ("aw0", "ew0", "ew1"):
        scenario.happen(ev.WorkerStarted, worker, 3, 100)
    kinds = {type(a) for a in plan(scenario.state, late, POLICY)}
    assert kinds <= {ac.Condemn, ac.GiveUp}


def test_without_handover_an_end_is_an_end(scenario):
    scenario.running()
    scenario.happen(ev.StopBegan, "asked", False)
    scenario.happen(ev.RunEnded)
    change(scenario)
    assert scenario.state.phase is RunPhase.ENDED
    assert change(scenario, head=2).stale == 1  # nobody is the same head twice


class Shaken(World):
    """A simulated run whose head is replaced now and then. `began`: events that are surely
    on disk.
    """

    began = 0

    def hand_on(self, lost: int) -> None:
        """The head dies; its last `lost` events were never written down, nor known to its heir.
        Nor does anybody do any more what that head had told it.
        """
        del self.events[max(self.began, len(self.events) - lost) :]
        claims = {}
        for who in self.processes:
            claims[who.worker] = max(who.number, claims.get(who.worker, 0))
        self.state = replay(self.events)
        self._due.clear()
        past = {w.worker: w for w in self.state.workers.values()}
        self.record(ev.HeadChanged(self.now, self.state.head + 1, {}, 0.0, claims))
        self.began = len(self.events)  # it is on disk before anything else is done
        for process in list(self.processes.values()):
            if process.alive:
                process.busy = 0.0
                self.later(process, lambda p=process: self.come(p, past))

    def come(self, process, past) -> None:
        known = self.state.workers.get(process.who.worker)
        if known is None or known.incarnation != process.who.number or not known.awaited:
            self.die(process)  # it is fenced, or was never heard of
            return
        phase = past[process.who.worker].phase
        ready = phase in (Phase.READY, Phase.SERVING, Phase.STOPPING)
        epoch = self.state.epoch if process.table == self.state.table else 0
        standing = Standing(
            welcomed=True,
            experts=sorted(process.holds),
            detail={} if ready else None,
            holds=sorted(process.holds),
            table_sent=epoch,
            table_applied=epoch,
            stores=process.stores,
        )
        self.record(ev.WorkerReturned(self.now, *process.who, 100, "node", {}, standing))
        if not ready:
            self.tell(process, ev.WorkerReady, {})


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), heads=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_a_run_survives_its_heads_and_reuses_no_incarnation(seed, heads):
    """`start` of the simulation asserts that no process is ever the same incarnation again."""
    rng = random.Random(seed)
    config = load_config({"model": {"path": "m"}, "experts": {"workers": 3, "shadows": 1}}).experts
    world = Shaken(rng, 6, config, 2)
    world.settle()
    world.began = len(world.events)
    for lost in heads:
        if rng.random() < 0.5:
            victims = [p for p in world.processes.values() if p.alive]
            world.die(rng.choice(victims))
        world.step(rng.random() * 2)
        world.hand_on(lost)
        world.step(rng.random() * 5)
    for _ in range(300):
        world.step(0.5)
    state = world.state
    assert replay(world.events) == state
    assert state.phase is RunPhase.RUNNING
    assert state.head == 1 + len(heads)
    assert {w.phase for w in state.workers.values() if w.member} <= {Phase.SERVING}
    current = {world.current(w.worker) for w in state.workers.values() if w.phase not in GONE}
    for process in world.processes.values():
        assert not process.alive or process.who in current
    assert all(row for row in state.table)
    assert {w.role for w in state.workers.values()} == {Role.AW, Role.EW}
