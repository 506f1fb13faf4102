"""Events fold into a state; stale and impossible ones only count."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.apply import apply, begin, replay
from tarragon_hpc.orchestrator.plan import plan
from tarragon_hpc.orchestrator.policy import Policy
from tarragon_hpc.orchestrator.state import GONE, Phase, RunPhase

CREATED = ev.RunCreated(
    at=0.0,
    run="r",
    workers=["aw0", "aw1", "ew0", "ew1"],
    experts=4,
    primaries={"ew0": [0, 1], "ew1": [2, 3]},
    shadows={"ew0": [], "ew1": []},
)


def any_event() -> st.SearchStrategy[ev.Event]:
    at, text, epoch = st.floats(0, 100), st.text(max_size=5), st.integers(0, 3)
    who = {
        "worker": st.sampled_from([*CREATED.workers, "ew2", "ew9"]),
        "incarnation": st.integers(0, 3),
    }
    pid, held = st.integers(1, 9), [["ew0"], ["ew0"], ["ew1"], ["ew1"]]
    some = st.lists(st.integers(-1, 5), max_size=4)
    moved = st.just({"ew0": [0, 1, 2], "ew2": [3]})
    name = st.sampled_from(["aw0", "aw2", "ew1", "ew2"])
    masked = dict.fromkeys(("detected_ago_s", "rerouted_ago_s", "answered_ago_s"), at)
    kinds = {
        ev.WorkerStarted: who | {"pid": pid},
        ev.WorkerRegistered: who | {"pid": pid, "host": text, "address": st.just({"a": "b"})},
        ev.WorkerWelcomed: who | {"experts": some},
        ev.WorkerReady: who | {"detail": st.sampled_from([{"a": 3}, {"experts": [0, 9]}])},
        ev.TablePublished: {"epoch": epoch, "table": st.just(held)},
        ev.TableSent: who | {"epoch": epoch},
        ev.TableTaken: who | {"epoch": epoch},
        ev.WorkerSilent: who | {"silent_s": at},
        ev.WorkerHeard: who,
        ev.WorkerSuspected: who | {"by": text, "reason": text},
        ev.WorkerCleared: who | {"by": text},
        ev.FailureMasked: who | masked | {"by": text, "how": text, "pairs": pid},
        ev.WorkerLinked: who
        | {"peer": name, "peer_incarnation": st.integers(0, 3), "kind": text, "reason": text},
        ev.LoadAsked: who | {"experts": some, "reason": text},
        ev.UnloadAsked: who | {"experts": some, "reason": text},
        ev.HoldingReported: who | {"experts": some, "error": st.none() | text},
        ev.WorkerGivenUp: who | {"reason": text},
        ev.WorkerAdded: {"worker": name, "incarnation": st.integers(0, 3), "reason": text},
        ev.WorkerRetired: who | {"reason": text},
        ev.WorkerDrained: who | {"reason": text},
        ev.WorkerRemoved: who,
        ev.PlacementChanged: {"primaries": moved, "shadows": moved, "reason": text},
        ev.WorkerLost: who | {"how": text, "reason": text},
        ev.WorkerExited: who | {"exit": text},
        ev.WorkerStopAsked: who | {"reason": text},
        ev.WorkerLeaving: who | {"reason": text},
        ev.WorkerFenced: who,
        ev.DrainBegan: {"reason": text, "drain_s": at},
        ev.StopBegan: {"reason": text, "failed": st.booleans()},
        ev.RunEnded: {},
    }
    return st.one_of(
        st.just(CREATED),
        *(st.builds(kind, at=at, **fields) for kind, fields in kinds.items()),
    )


@given(st.lists(any_event(), max_size=40))
def test_whatever_happens_the_state_stays_sound(events):
    state = begin(CREATED)
    run_phases = list(RunPhase)
    for event in events:
        before, state = state, apply(state, event)
        assert run_phases.index(state.phase) >= run_phases.index(before.phase)
        assert state.epoch >= before.epoch
        if not isinstance(event, ev.WorkerAdded | ev.WorkerRemoved):
            assert state.workers.keys() == before.workers.keys()
        for name, worker in state.workers.items():
            assert worker.holds <= set(range(4))
            was = before.workers.get(name)
            if was is None:
                assert worker.incarnation >= before.removed.get(name, 0)
                continue
            assert worker.incarnation >= was.incarnation
            if worker.incarnation == was.incarnation and was.phase in GONE:
                assert worker.phase is was.phase
            if worker.incarnation > was.incarnation:
                assert isinstance(event, ev.WorkerStarted)
                assert was.phase in GONE | {Phase.PLANNED}
            if worker.phase is Phase.SERVING and was.phase is not Phase.SERVING:
                assert state.epoch > 0 or worker.table_applied > 0
        if state.stale > before.stale:
            assert replace(state, stale=before.stale) == before
        for action in plan(state, 200.0, Policy(start_timeout_s=50)):
            assert action.reason is not None
    assert replay([CREATED, *events]) == state


def test_a_run_goes_from_planned_to_running(scenario):
    assert {w.phase for w in scenario.state.workers.values()} == {Phase.PLANNED}
    scenario.started()
    assert scenario["aw0"].incarnation == 1
    scenario.registered()
    assert scenario["ew1"].address == {"shm": "/s/ew1"}
    scenario.loading().ready()
    assert scenario.state.phase is RunPhase.STARTING
    assert {w.phase for w in scenario.state.workers.values()} == {Phase.READY}
    scenario.published()
    assert scenario["ew0"].phase is Phase.SERVING
    assert scenario["aw0"].phase is Phase.READY
    scenario.taken("aw0")
    assert scenario["aw0"].phase is Phase.SERVING
    assert scenario.state.phase is RunPhase.STARTING
    scenario.taken("aw1")
    assert scenario.state.phase is RunPhase.RUNNING


def test_an_aw_serves_whichever_comes_first_ready_or_table(scenario):
    scenario.started().registered().loading().ready("ew0", "ew1").published()
    scenario.taken("aw0")
    assert scenario["aw0"].phase is Phase.LOADING
    scenario.ready("aw0")
    assert scenario["aw0"].phase is Phase.SERVING


def test_a_lost_connection_or_an_exit_is_death_and_the_first_reason_stays(scenario):
    scenario.running()
    scenario.happen(ev.WorkerLost, "ew0", 1, "connection", "its connection was closed")
    scenario.happen(ev.WorkerExited, "ew0", 1, "killed by SIGKILL")
    ew0 = scenario["ew0"]
    assert (ew0.phase, ew0.reason, ew0.exit) == (
        Phase.DEAD,
        "its connection was closed",
        "killed by SIGKILL",
    )
    scenario.happen(ev.WorkerExited, "aw0", 1, "exit status 0")
    scenario.happen(ev.WorkerLost, "aw0", 1, "connection", "its connection was closed")
    assert scenario.state.stale == 0
    assert (scenario["aw0"].phase, scenario["aw0"].reason) == (Phase.DEAD, "exit status 0")
    assert scenario.state.phase is RunPhase.RUNNING


def test_who_leaves_as_asked_is_stopped_not_dead(scenario):
    scenario.running()
    scenario.happen(ev.WorkerStopAsked, "ew0", 1, "the run is over")
    scenario.happen(ev.WorkerLost, "ew0", 1, "connection", "its connection was closed")
    scenario.happen(ev.WorkerExited, "ew0", 1, "exit status 0")
    ew0 = scenario["ew0"]
    assert (ew0.phase, ew0.reason, ew0.exit) == (Phase.STOPPED, "the run is over", "exit status 0")


@pytest.mark.parametrize(
    "event",
    [
        ev.WorkerReady(9.0, "ew0", 2, {}),
        ev.WorkerLost(9.0, "ew0", 0, "connection", "old"),
        ev.WorkerLost(9.0, "ew7", 1, "connection", "unknown"),
        ev.WorkerRegistered(9.0, "ew0", 1, 5, "h", {}),
        ev.WorkerStarted(9.0, "ew0", 1, 5),
        ev.WorkerStarted(9.0, "ew0", 2, 5),
        ev.TablePublished(9.0, 1, [["ew0"]] * 4),
        CREATED,
    ],
)
def test_stale_events_change_nothing_but_a_counter(scenario, event):
    before = scenario.running().state
    after = apply(before, event)
    assert after == replace(before, stale=1)


def test_nothing_about_a_dead_incarnation_matters_any_more(scenario):
    scenario.running()
    before = scenario.happen(ev.WorkerLost, "aw0", 1, "connection", "gone")
    for kind, fields in [(ev.WorkerReady, ({},)), (ev.TableTaken, (1,)), (ev.WorkerHeard, ())]:
        after = scenario.happen(kind, "aw0", 1, *fields)
        assert after.workers == before.workers
    assert scenario.state.stale == 3


def test_a_dead_place_can_be_filled_by_the_next_incarnation(scenario):
    scenario.running()
    scenario.happen(ev.WorkerExited, "aw0", 1, "killed by SIGKILL")
    scenario.happen(ev.WorkerStarted, "aw0", 2, pid=77)
    aw0 = scenario["aw0"]
    assert (aw0.phase, aw0.incarnation, aw0.pid, aw0.exit) == (Phase.STARTING, 2, 77, None)


def test_what_peers_tell_of_a_dead_incarnation_is_not_stale(scenario):
    scenario.running()
    scenario.happen(ev.WorkerExited, "ew0", 1, "killed by SIGKILL")
    before = scenario.happen(ev.WorkerStarted, "ew0", 2, 101)
    scenario.happen(ev.FailureMasked, "ew0", 1, "aw0.1", "lost", 0.1, 0.1, 0.0, 7)
    scenario.happen(ev.WorkerSuspected, "ew0", 1, "aw0.1", "slow")
    assert scenario.happen(ev.WorkerCleared, "ew0", 2, "aw0.1") == before
    assert scenario.happen(ev.WorkerCleared, "ew0", 3, "aw0.1").stale == 1
    assert scenario.happen(ev.WorkerCleared, "ew7", 1, "aw0.1").stale == 2


def test_connections_count_while_both_ends_are_there(scenario):
    scenario.running()
    scenario.happen(ev.WorkerLinked, "aw0", 1, "ew0", 1, "shm")
    scenario.happen(ev.WorkerLinked, "aw0", 1, "ew1", 1, "tcp", "shm: no such file")

    def links():
        found = scenario.state.links(scenario["aw0"])
        return {peer: (link.incarnation, link.kind) for peer, link in found.items()}

    assert links() == {"ew0": (1, "shm"), "ew1": (1, "tcp")}
    assert scenario["aw0"].links["ew1"].reason == "shm: no such file"
    scenario.happen(ev.WorkerExited, "ew1", 1, "killed by SIGKILL")
    assert links() == {"ew0": (1, "shm")}
    scenario.happen(ev.WorkerStarted, "ew1", 2, 101)
    assert links() == {"ew0": (1, "shm")}
    scenario.happen(ev.WorkerLinked, "aw0", 1, "ew1", 2, "rdma")
    scenario.happen(ev.WorkerLinked, "aw0", 1, "ew1", 1, "tcp")  # made before, told after
    scenario.happen(ev.WorkerLinked, "aw0", 1, "ew9", 1, "shm")
    assert links() == {"ew0": (1, "shm"), "ew1": (2, "rdma")}
    scenario.happen(ev.WorkerExited, "aw0", 1, "killed by SIGKILL")
    assert links() == {}
    scenario.happen(ev.WorkerStarted, "aw0", 2, 102)
    assert links() == {}
    assert scenario.happen(ev.WorkerLinked, "aw0", 1, "ew0", 1, "shm").stale == 1


def test_what_an_ew_holds_is_what_it_says(scenario):
    scenario.running()
    assert scenario["ew0"].holds == {0, 1}
    scenario.happen(ev.LoadAsked, "ew0", 1, [2, 3], "why not")
    scenario.happen(ev.UnloadAsked, "ew0", 1, [1], "not needed")
    assert (scenario["ew0"].holds, scenario["ew0"].dropping) == ({0}, {1})
    scenario.happen(ev.HoldingReported, "ew0", 1, [0, 1], "3: no such file")
    assert (scenario["ew0"].holds, scenario["ew0"].loading) == ({0}, frozenset())
    assert {e: f.times for e, f in scenario["ew0"].failed.items()} == {2: 1, 3: 1}
    scenario.happen(ev.LoadAsked, "ew0", 1, [2], "again")
    scenario.happen(ev.HoldingReported, "ew0", 1, [0])
    assert (scenario["ew0"].dropping, scenario["ew0"].loading) == (frozenset(), {2})
    scenario.happen(ev.HoldingReported, "ew0", 1, [0, 2])
    assert (scenario["ew0"].holds, scenario["ew0"].orders) == ({0, 2}, ())
    assert list(scenario["ew0"].failed) == [3]
    scenario.happen(ev.WorkerExited, "ew0", 1, "killed by SIGKILL")
    assert not scenario["ew0"].holds


def test_workers_come_and_go_and_a_name_is_never_confused(scenario):
    scenario.running()
    scenario.happen(ev.WorkerAdded, "aw2", 0, "aw=3")
    assert scenario["aw2"].phase is Phase.PLANNED
    assert scenario.happen(ev.WorkerRemoved, "aw1", 1).stale == 1
    scenario.happen(ev.WorkerRetired, "aw1", 1, "aw=2")
    assert scenario.happen(ev.WorkerRemoved, "aw1", 1).stale == 2
    scenario.happen(ev.WorkerExited, "aw1", 1, "exit status 0")
    scenario.happen(ev.WorkerRemoved, "aw1", 1)
    assert "aw1" not in scenario.state.workers
    assert scenario.happen(ev.WorkerLost, "aw1", 1, "connection", "late").stale == 3
    assert scenario.happen(ev.WorkerAdded, "aw1", 0, "aw=3").stale == 4
    scenario.happen(ev.WorkerAdded, "aw1", 1, "aw=3")
    scenario.happen(ev.WorkerStarted, "aw1", 2, 100)
    assert (scenario["aw1"].incarnation, scenario["aw1"].restarts) == (2, ())
    assert replay(scenario.events) == scenario.state


def test_silence_and_its_end(scenario):
    scenario.running()
    scenario.happen(ev.WorkerSilent, "ew0", 1, 1.5)
    assert not scenario["ew0"].responsive
    assert scenario["ew0"].phase is Phase.SERVING
    scenario.happen(ev.WorkerHeard, "ew0", 1)
    assert scenario["ew0"].responsive


def test_a_run_ends_once_and_keeps_its_reason(scenario):
    scenario.running()
    scenario.happen(ev.DrainBegan, "asked", 3.0)
    assert (scenario.state.phase, scenario.state.drain_s) == (RunPhase.DRAINING, 3.0)
    scenario.happen(ev.StopBegan, "drained", failed=False)
    scenario.happen(ev.StopBegan, "again", failed=True)
    scenario.happen(ev.DrainBegan, "late", 1.0)
    scenario.happen(ev.RunEnded)
    assert scenario.state.phase is RunPhase.ENDED
    assert scenario.state.reason == "drained"
    assert not scenario.state.failed


def test_a_replay_gives_the_same_state(scenario):
    scenario.running()
    scenario.happen(ev.WorkerExited, "ew1", 1, "killed by SIGKILL")
    assert replay(scenario.events) == scenario.state


def test_a_journal_that_does_not_begin_at_the_beginning_is_refused():
    with pytest.raises(ValueError, match="begins with RunCreated"):
        replay([ev.RunEnded(1.0)])
    with pytest.raises(ValueError, match="begins with RunCreated"):
        replay([])
