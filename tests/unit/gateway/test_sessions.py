"""Sessions: admission, ownership, ends. What is lost and moved is in test_moves."""

from __future__ import annotations

import asyncio

import pytest

from tarragon_hpc.errors import Overloaded, RequestError, Unavailable
from tarragon_hpc.wire.to_head import Failed, Refused
from tests.unit.gateway.rig import Rig, read, run


def test_sequences_go_to_the_least_loaded_worker():
    async def main():
        rig = Rig()
        rig.open([1], [2], [3])
        assert [w for w, _ in rig.submitted()] == ["aw0", "aw1", "aw0"]
        assert rig.sessions.stats().running_on == {"aw0": 2, "aw1": 1}
        assert len({r for _, r in rig.submitted()}) == 3

    run(main())


def test_tokens_reach_the_reader_while_it_waits_and_coalesce_while_it_does_not():
    async def main():
        rig = Rig()
        handle = rig.open()
        ((worker, request),) = rig.submitted()
        asyncio.get_running_loop().call_soon(rig.tokens, worker, (request, 0, [5]))
        assert (await anext(handle)).token_ids == [5]
        rig.tokens(worker, (request, 1, [6]))
        rig.tokens(worker, (request, 2, [7, 8], None, "length"))
        last = await anext(handle)
        assert (last.token_ids, last.finish) == ([6, 7, 8], "length")
        with pytest.raises(StopAsyncIteration):
            await anext(handle)
        stats = rig.sessions.stats()
        assert (stats.open, stats.running, stats.tokens) == (0, 0, 4)
        assert stats.ended == {"finished": 1}
        assert rig.aborted() == []

    run(main())


def test_admission_is_all_or_nothing_and_a_slot_is_held_until_the_end_is_read():
    async def main():
        rig = Rig(max_requests=3)
        handle = rig.open([1], [2])
        with pytest.raises(Overloaded, match="at most 3"):
            rig.open([1], [2])
        with pytest.raises(RequestError, match="at most 3 sequences") as error:
            rig.open([1], [2], [3], [4])
        assert error.value.param == "n"
        assert len(rig.submitted()) == 2
        (worker, request), _ = rig.submitted()
        rig.tokens(worker, (request, 0, [5], None, "stop"))
        assert rig.sessions.stats().open == 2
        assert (await anext(handle)).finish == "stop"
        rig.open([1], [2])

    run(main())


@pytest.mark.parametrize("how", ["abort", "close", "with"])
def test_giving_up_aborts_on_the_worker_and_frees_the_slot(how):
    async def main():
        rig = Rig()
        handle = rig.open()
        ((worker, request),) = rig.submitted()
        if how == "abort":
            handle.abort(0)
        elif how == "close":
            handle.close()
        else:
            with handle:
                pass
        handle.close()
        assert rig.aborted() == [(worker, request)]
        assert rig.sessions.stats().open == 0
        rig.tokens(worker, (request, 0, [5]))
        assert rig.sessions.stats().dropped == {"unknown": 1}
        assert await read(handle) == ({}, {}, None)

    run(main())


def test_nothing_is_admitted_without_workers_or_while_not_serving():
    async def main():
        rig = Rig(workers=())
        with pytest.raises(Unavailable, match="no attention worker"):
            rig.open()
        rig.sessions.on_worker_serving("aw0", 1)
        rig.sessions.set_serving(False, "ew1 is lost")
        with pytest.raises(Unavailable, match="ew1 is lost"):
            rig.open()
        assert rig.sessions.stats().reason == "ew1 is lost"
        rig.sessions.set_serving(True, "")
        rig.open()

    run(main())


def test_refused_is_the_requests_mistake_and_failed_is_not():
    async def main():
        rig = Rig()
        first, second = rig.open([1]), rig.open([2])
        (w1, r1), (w2, r2) = rig.submitted()
        rig.sessions.on_refused(Refused(w2, 1, r1, "not yours"))
        rig.sessions.on_refused(Refused(w1, 1, r1, "too long", "prompt"))
        rig.sessions.on_failed(Failed(w2, 7, [r2], "stale", again=False))
        rig.sessions.on_failed(Failed(w2, 1, [r2, "unknown"], "ew0 lost", again=False))
        error = (await read(first))[2]
        assert isinstance(error, RequestError)
        assert (str(error), error.param) == ("too long", "prompt")
        assert isinstance((await read(second))[2], Unavailable)
        assert rig.sessions.stats().ended == {"refused": 1, "failed": 1}
        assert rig.aborted() == []

    run(main())


def test_one_failed_sequence_ends_the_request_and_aborts_the_others():
    async def main():
        rig = Rig()
        handle = rig.open([1], [2])
        (w1, r1), (w2, r2) = rig.submitted()
        rig.sessions.on_failed(Failed(w1, 1, [r1], "ew0 lost", again=False))
        assert "ew0 lost" in str((await read(handle))[2])
        assert rig.aborted() == [(w2, r2)]
        assert rig.sessions.stats().open == 0

    run(main())


def test_drain_admits_nothing_waits_for_readers_and_cuts_at_the_deadline():
    async def main():
        rig = Rig()
        handle = rig.open()
        ((worker, request),) = rig.submitted()
        drained = asyncio.ensure_future(rig.sessions.drain(30))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="stopping"):
            rig.open()
        rig.sessions.set_serving(True, "")
        rig.tokens(worker, (request, 0, [5], None, "stop"))
        await asyncio.sleep(0)
        assert not drained.done()
        await read(handle)
        assert await drained == 0

        rig = Rig()
        handle = rig.open()
        assert await rig.sessions.drain(0) == 1
        assert "stopped before" in str((await read(handle))[2])
        assert rig.aborted() == rig.submitted()
        assert await rig.sessions.drain(0) == 0

    run(main())
