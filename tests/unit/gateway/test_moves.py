"""What happens to sequences whose AW is lost, leaves, falls silent or fails them."""

from __future__ import annotations

import asyncio
import re

import pytest

from tarragon_hpc.errors import Unavailable
from tarragon_hpc.wire.common import Resumption, SamplingSpec
from tarragon_hpc.wire.to_head import Failed, Resumed
from tests.unit.gateway.rig import Rig, read, run


def test_a_lost_worker_loses_no_sequence_and_its_late_tokens_change_nothing():
    async def main():
        rig = Rig()
        moved, kept = rig.open([1]), rig.open([2])
        (_, request), (_, other) = rig.submitted()
        rig.tokens("aw0", (request, 0, [5, 6]))
        rig.sessions.on_worker_lost("aw0", 1, "killed")
        assert rig.submits()[2:] == [("aw1", request, 2, [5, 6])]
        rig.tokens("aw0", (request, 2, [99]))  # it is not there any more
        rig.tokens("aw1", (request, 2, [99]))  # the attempt before
        rig.tokens("aw1", (request, 2, [99]), attempt=3)
        rig.tokens("aw1", (request, 2, [7], None, "stop"), attempt=2)
        rig.tokens("aw1", (other, 0, [8], None, "stop"))
        assert await read(moved) == ({0: [5, 6, 7]}, {0: "stop"}, None)
        assert await read(kept) == ({0: [8]}, {0: "stop"}, None)
        stats = rig.sessions.stats()
        assert (stats.moved, stats.dropped, stats.ended) == (1, {"stale": 3}, {"finished": 2})
        assert rig.aborted() == rig.aborted(moved=True) == []
        reason = "attention worker aw0 was lost: killed"
        detail = {"count": 1, "waiting": 0, "reason": reason}
        assert rig.told == [("requests moved", ("aw0", 1), detail)]

    run(main())


def test_what_is_submitted_does_not_change_afterwards():
    async def main():
        rig = Rig()
        with rig.open():
            ((_, request),) = rig.submitted()
            rig.tokens("aw0", (request, 0, [5]))
            rig.sessions.on_worker_lost("aw0", 1, "killed")
            rig.tokens("aw1", (request, 1, [6]), attempt=2)
            assert rig.submits()[1] == ("aw1", request, 2, [5])

    run(main())


def test_without_another_worker_they_wait_and_the_longest_gap_goes_first():
    async def main():
        rig = Rig(workers=("aw0",))
        handles = [rig.open([i]) for i in range(3)]
        first, second, third = (request for _, request in rig.submitted())
        rig.tokens("aw0", (first, 0, [5]))
        rig.tokens("aw0", (second, 0, [5]))
        rig.sessions.on_worker_lost("aw0", 1, "killed")
        stats = rig.sessions.stats()
        assert (stats.open, stats.running, stats.waiting, stats.running_on) == (3, 0, 3, {})
        assert rig.sessions.unavailable() == "no attention worker is serving"
        rig.sessions.on_worker_serving("aw0", 2)
        order = [(third, 2, []), (first, 2, [5]), (second, 2, [5])]
        assert [s[1:] for s in rig.submits()[3:]] == order
        for request in (first, second, third):
            item = (request, 0, [5, 6], None, "stop")
            rig.tokens("aw0", item, incarnation=2, attempt=2)
        for handle in handles:
            assert await read(handle) == ({0: [5, 6]}, {0: "stop"}, None)
        (moved,) = rig.told
        assert (moved[2]["count"], moved[2]["waiting"]) == (3, 3)
        # A lost one does not come back.
        rig.sessions.on_worker_serving("aw0", 1)
        rig.sessions.on_worker_lost("aw0", 1, "old news")
        assert rig.sessions.stats().running_on == {"aw0": 0}

    run(main())


def test_a_worker_that_is_replaced_before_its_loss_was_told_shares_with_the_new_one():
    async def main():
        rig = Rig()
        with rig.open([1], [2], [3], [4]):
            rig.sessions.on_worker_serving("aw0", 2)
            assert [s[0] for s in rig.submits()[4:]] == ["aw0", "aw0"]
            assert "replaced by aw0.2" in rig.told[0][2]["reason"]

    run(main())


def test_nobody_waits_longer_than_the_limit_and_the_error_says_what_for():
    async def main():
        rig = Rig(workers=("aw0",), failover_timeout_s=0.05)
        handle = rig.open()
        ((_, request),) = rig.submitted()
        rig.tokens("aw0", (request, 0, [5]))
        rig.sessions.set_serving(False, "no attention worker is left")
        rig.sessions.on_worker_lost("aw0", 1, "killed")
        tokens, _, error = await read(handle)
        assert tokens == {0: [5]}
        assert isinstance(error, Unavailable)
        assert re.fullmatch(
            r"attention worker aw0 was lost: killed; waited \d\.\d s for another attention worker:"
            r" no attention worker is left \(1 tokens had been generated\)",
            str(error),
        )
        stats = rig.sessions.stats()
        assert (stats.waiting, stats.open, stats.ended) == (0, 0, {"failed": 1})

    run(main())


@pytest.mark.parametrize("how", ["close", "drain"])
def test_what_waits_can_be_given_up(how):
    async def main():
        rig = Rig(workers=("aw0",))
        handle = rig.open()
        rig.sessions.on_worker_lost("aw0", 1, "killed")
        if how == "close":
            handle.close()
            assert rig.sessions.stats().ended == {"aborted": 1}
        else:
            assert await rig.sessions.drain(0) == 1
            assert "stopped before" in str((await read(handle))[2])
        assert (rig.sessions.stats().waiting, rig.sessions.stats().open) == (0, 0)
        rig.sessions.on_worker_serving("aw0", 2)
        assert len(rig.submits()) == 1

    run(main())


def test_a_draining_worker_hands_over_and_gets_nothing_new():
    async def main():
        rig = Rig()
        handle = rig.open()
        ((_, request),) = rig.submitted()
        rig.tokens("aw0", (request, 0, [5]))
        rig.sessions.on_worker_draining("aw7", 1)
        rig.sessions.on_worker_draining("aw0", 1)
        assert rig.aborted(moved=True) == [("aw0", request)]
        assert rig.submits()[1:] == [("aw1", request, 2, [5])]
        assert rig.told[0][:2] == ("requests moved", ("aw0", 1))
        rig.tokens("aw0", (request, 1, [99]))
        rig.tokens("aw1", (request, 1, [6], None, "stop"), attempt=2)
        assert (await read(handle))[0] == {0: [5, 6]}
        with rig.open([2], [3]):
            assert [w for w, _ in rig.submitted()[2:]] == ["aw1", "aw1"]

    run(main())


def test_the_last_worker_that_drains_finishes_what_it_has():
    async def main():
        rig = Rig(workers=("aw0",))
        handle = rig.open()
        ((_, request),) = rig.submitted()
        rig.sessions.on_worker_draining("aw0", 1)
        assert rig.sessions.unavailable() == "no attention worker is serving"
        rig.sessions.on_worker_serving("aw1", 1)
        assert rig.aborted(moved=True) == []
        rig.tokens("aw0", (request, 0, [5], None, "length"))
        assert await read(handle) == ({0: [5]}, {0: "length"}, None)
        assert rig.told == []

    run(main())


def test_a_silent_worker_is_left_and_given_nothing_until_it_is_heard():
    async def main():
        rig = Rig()
        handle = rig.open()
        ((_, request),) = rig.submitted()
        rig.sessions.on_worker_silent("aw0", 7)
        rig.sessions.on_worker_silent("aw0", 1)
        assert rig.aborted(moved=True) == [("aw0", request)]
        assert rig.submits()[1:] == [("aw1", request, 2, [])]
        with rig.open([2], [3]):
            assert [w for w, _ in rig.submitted()[2:]] == ["aw1", "aw1"]
        rig.sessions.on_worker_heard("aw0", 1)
        rig.tokens("aw0", (request, 0, [99]))
        rig.sessions.on_worker_lost("aw1", 1, "killed")
        assert rig.submits()[-1] == ("aw0", request, 3, [])
        rig.tokens("aw0", (request, 0, [99]))
        rig.tokens("aw0", (request, 0, [5], None, "stop"), attempt=3)
        assert (await read(handle))[0] == {0: [5]}
        assert rig.sessions.stats().dropped == {"stale": 2}

    run(main())


@pytest.mark.parametrize("then", ["serves", "heard", "speaks"])
def test_where_all_are_silent_a_sequence_stays_until_one_is_not(then):
    async def main():
        rig = Rig()
        handle = rig.open()
        ((_, request),) = rig.submitted()
        rig.sessions.on_worker_silent("aw1", 1)
        rig.sessions.on_worker_silent("aw0", 1)
        assert rig.sessions.unavailable() == ("no attention worker is serving (silent: aw0, aw1)")
        assert len(rig.sent) == 1
        worker, attempt = "aw0", 1
        if then == "serves":
            rig.sessions.on_worker_serving("aw2", 1)
            worker, attempt = "aw2", 2
        elif then == "heard":
            rig.sessions.on_worker_heard("aw1", 1)
            worker, attempt = "aw1", 2
        assert rig.submits()[-1] == (worker, request, attempt, [])
        rig.tokens(worker, (request, 0, [5], None, "stop"), attempt=attempt)
        assert (await read(handle))[0] == {0: [5]}

    run(main())


def test_what_failed_goes_to_another_worker_if_that_may_help():
    async def main():
        rig = Rig()
        first, second = rig.open([1]), rig.open([2])
        (w1, r1), (w2, r2) = rig.submitted()
        rig.tokens(w1, (r1, 0, [5]))
        rig.sessions.on_failed(Failed(w1, 7, [r1], "stale"))
        rig.sessions.on_failed(Failed(w1, 1, [r1, r2, "unknown"], "ew0 lost"))
        assert rig.submits()[2:] == [(w2, r1, 2, [5])]
        rig.sessions.on_failed(Failed(w2, 1, [r2], "no such expert", again=False))
        error = (await read(second))[2]
        assert str(error) == "no such expert (0 tokens had been generated)"
        rig.tokens(w2, (r1, 1, [6], None, "stop"), attempt=2)
        assert (await read(first))[0] == {0: [5, 6]}

    run(main())


def test_the_only_worker_may_try_again_a_little_later():
    async def main():
        rig = Rig(workers=("aw0",))
        handle = rig.open()
        ((_, request),) = rig.submitted()
        rig.sessions.on_failed(Failed("aw0", 1, [request], "ew0 lost"))
        assert rig.sessions.stats().waiting == 1
        await asyncio.sleep(0.15)
        assert rig.submits()[1:] == [("aw0", request, 2, [])]
        rig.tokens("aw0", (request, 0, [5], None, "stop"), attempt=2)
        assert (await read(handle))[0] == {0: [5]}

    run(main())


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ((2, [9]), "do not fit (gap)"),
        ((-1, [5]), "do not fit (malformed)"),
        ((0, [7]), "do not fit (conflict)"),
        ((1, [], None, "error"), "ended it (error)"),
        ((1, [], None, "abort"), "ended it (abort)"),
    ],
)
def test_a_worker_that_makes_no_sense_is_not_believed_and_another_goes_on(item, why):
    async def main():
        rig = Rig()
        handle = rig.open()
        ((_, request),) = rig.submitted()
        rig.tokens("aw0", (request, 0, [5]))
        rig.tokens("aw0", (request, *item))
        assert rig.submits()[1:] == [("aw1", request, 2, [5])]
        assert rig.aborted() == ([] if "ended" in why else [("aw0", request)])
        rig.tokens("aw0", (request, 1, [99]))
        rig.tokens("aw1", (request, 1, [6], None, "stop"), attempt=2)
        assert await read(handle) == ({0: [5, 6]}, {0: "stop"}, None)

    run(main())


def test_five_interruptions_in_a_row_without_a_token_are_enough():
    async def main():
        rig = Rig(workers=("aw0",))
        handle = rig.open()
        ((_, request),) = rig.submitted()

        def lose(times):
            for _ in range(times):
                incarnation = rig.submits()[-1][2]
                rig.sessions.on_worker_lost("aw0", incarnation, "killed")
                rig.sessions.on_worker_serving("aw0", incarnation + 1)

        lose(4)
        rig.tokens("aw0", (request, 0, [5]), incarnation=5, attempt=5)
        lose(4)
        assert rig.submits()[-1] == ("aw0", request, 9, [5])
        # Leaving in good order is nobody's fault.
        rig.sessions.on_worker_serving("aw1", 1)
        rig.sessions.on_worker_draining("aw0", 9)
        assert rig.submits()[-1] == ("aw1", request, 10, [5])
        rig.sessions.on_worker_lost("aw1", 1, "killed")
        tokens, _, error = await read(handle)
        assert tokens == {0: [5]}
        assert "aw1 was lost: killed; interrupted 5 times in a row without a new token" in str(
            error
        )
        assert rig.sessions.stats().waiting == 0

    run(main())


def test_a_sequence_that_has_all_its_tokens_is_done_even_if_nobody_said_so():
    async def main():
        rig = Rig(spec=SamplingSpec(max_tokens=2))
        handle = rig.open()
        ((_, request),) = rig.submitted()
        rig.tokens("aw0", (request, 0, [5, 6]))
        rig.sessions.on_worker_lost("aw0", 1, "killed")
        assert await read(handle) == ({0: [5, 6]}, {0: "length"}, None)
        assert len(rig.submits()) == 1

    run(main())


def test_a_finished_sequence_is_not_moved():
    async def main():
        rig = Rig()
        handle = rig.open()
        ((_, request),) = rig.submitted()
        rig.tokens("aw0", (request, 0, [5], None, "stop"))
        rig.sessions.on_worker_lost("aw0", 1, "killed")
        assert len(rig.submits()) == 1
        assert rig.told == []
        assert await read(handle) == ({0: [5]}, {0: "stop"}, None)

    run(main())


@pytest.mark.parametrize("tokens_first", [False, True])
def test_resumptions_are_counted_and_told_with_the_gap(tokens_first):
    async def main():
        rig = Rig()
        with rig.open([1], [2]):
            (_, first), (_, second) = rig.submitted()
            rig.tokens("aw0", (first, 0, [5]))
            await asyncio.sleep(0.05)
            rig.sessions.on_worker_lost("aw0", 1, "killed")
            rig.told.clear()
            rig.sessions.on_resumed(Resumed("aw1", 1, Resumption(first, 1, 9, 0, 1, 1, 0.1)))
            rig.sessions.on_resumed(Resumed("aw0", 1, Resumption(first, 2, 9, 0, 1, 1, 0.1)))
            assert rig.told == []
            if tokens_first:
                rig.tokens("aw1", (first, 1, [6]), attempt=2)
                await asyncio.sleep(0.3)
            rig.sessions.on_resumed(
                Resumed("aw1", 1, Resumption(first, 2, 9, 3, 1, 4096, 0.02, "why"))
            )
            ((event, who, detail),) = rig.told
            assert (event, who) == ("request resumed", ("aw1", 1))
            assert 0.05 <= detail.pop("gap_s") < 0.3
            assert detail == {
                "request": first, "id": "cmpl-1", "attempt": 2, "left": "aw0.1", "restored": 9,
                "cached": 3, "computed": 1, "nbytes": 4096, "seconds": 0.02, "reason": "why",
            }  # fmt: skip
            rig.sessions.on_worker_serving("aw0", 2)
            rig.sessions.on_worker_lost("aw1", 1, "killed")
            rig.sessions.on_resumed(Resumed("aw0", 2, Resumption(second, 2, 0, 0, 4, 0, 0.02)))
            stats = rig.sessions.stats()
            assert (stats.moved, stats.restored, stats.recomputed) == (3, 1, 1)

    run(main())
