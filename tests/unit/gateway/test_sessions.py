"""Sessions: admission, ownership, losses, and the exactly-once promise."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarragon_hpc.errors import Overloaded, RequestError, Unavailable
from tarragon_hpc.gateway.sessions import Sessions
from tarragon_hpc.wire.common import SamplingSpec, TokenDelta
from tarragon_hpc.wire.to_head import Failed, Refused, Tokens
from tarragon_hpc.wire.to_worker import Abort, Submit

SPEC = SamplingSpec(max_tokens=8)


class Rig:
    """Sessions with two serving AWs, and what was sent to them."""

    def __init__(self, workers=("aw0", "aw1"), max_requests=8):
        self.sent = []
        self.sessions = Sessions(lambda w, m: self.sent.append((w, m)), max_requests)
        self.sessions.set_serving(True, "")
        for worker in workers:
            self.sessions.on_worker_serving(worker, 1)

    def open(self, *prompts):
        return self.sessions.open([(prompt, SPEC) for prompt in prompts or ([1],)])

    def submitted(self):
        return [(w, m.request) for w, m in self.sent if isinstance(m, Submit)]

    def aborted(self):
        return [(w, r) for w, m in self.sent if isinstance(m, Abort) for r in m.requests]

    def tokens(self, worker, *items, incarnation=1):
        self.sessions.on_tokens(Tokens(worker, incarnation, [TokenDelta(*i) for i in items]))


async def read(handle, tokens=None, finish=None):
    """What a client gets: tokens and finish per sequence, and the error that ended it."""
    tokens = {} if tokens is None else tokens
    finish = {} if finish is None else finish
    try:
        async for delta in handle:
            tokens.setdefault(delta.sequence, []).extend(delta.token_ids)
            finish[delta.sequence] = delta.finish
    except (Unavailable, RequestError) as error:
        return tokens, finish, error
    return tokens, finish, None


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 5))


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


def test_a_lost_worker_ends_its_sequences_after_their_last_token_and_no_others():
    async def main():
        rig = Rig()
        lost, kept = rig.open([1]), rig.open([2])
        (_, request), (_, other) = rig.submitted()
        rig.tokens("aw0", (request, 0, [5]))
        rig.sessions.on_worker_lost("aw0", 1, "killed")
        tokens, _, error = await read(lost)
        assert tokens == {0: [5]}
        assert str(error) == "attention worker aw0 was lost: killed (1 tokens had been generated)"
        rig.tokens("aw0", (request, 1, [6]))
        rig.tokens("aw1", (other, 0, [7], None, "stop"))
        assert (await read(kept))[0] == {0: [7]}
        assert rig.sessions.stats().dropped == {"stale": 1}
        assert rig.sessions.stats().ended == {"failed": 1, "finished": 1}

    run(main())


def test_a_worker_that_serves_again_takes_new_work_but_not_its_old_messages():
    async def main():
        rig = Rig(workers=("aw0",))
        old = rig.open()
        rig.sessions.on_worker_serving("aw0", 2)
        assert "replaced by aw0.2" in str((await read(old))[2])
        new = rig.open()
        (_, first), (_, second) = rig.submitted()
        rig.tokens("aw0", (second, 0, [9]), incarnation=1)
        rig.tokens("aw0", (first, 0, [9]), incarnation=2)
        rig.tokens("aw0", (second, 0, [5], None, "stop"), incarnation=2)
        rig.sessions.on_worker_lost("aw0", 1, "old news")
        rig.sessions.on_worker_serving("aw0", 1)
        assert (await read(new))[:2] == ({0: [5]}, {0: "stop"})
        assert rig.sessions.stats().dropped == {"stale": 1, "unknown": 1}
        assert rig.sessions.stats().running_on == {"aw0": 0}

    run(main())


def test_a_draining_worker_finishes_what_it_has_and_gets_nothing_new():
    async def scenario():
        rig = Rig()
        first = rig.open()
        rig.sessions.on_worker_draining("aw0", 1)
        rig.sessions.on_worker_draining("aw7", 1)
        others = [rig.open() for _ in range(3)]
        assert [w for w, _ in rig.submitted()] == ["aw0", "aw1", "aw1", "aw1"]
        (_, request), *_ = rig.submitted()
        rig.tokens("aw0", (request, 0, [5], None, "length"))
        assert await read(first) == ({0: [5]}, {0: "length"}, None)
        rig.sessions.on_worker_draining("aw1", 1)
        assert rig.sessions.unavailable() == "no attention worker is serving"
        rig.sessions.on_worker_lost("aw0", 1, "it left")
        rig.sessions.on_worker_serving("aw0", 2)
        assert rig.sessions.unavailable() is None
        for handle in others:
            handle.close()

    run(scenario())


def test_refused_is_the_requests_mistake_and_failed_is_not():
    async def main():
        rig = Rig()
        first, second = rig.open([1]), rig.open([2])
        (w1, r1), (w2, r2) = rig.submitted()
        rig.sessions.on_refused(Refused(w2, 1, r1, "not yours"))
        rig.sessions.on_refused(Refused(w1, 1, r1, "too long", "prompt"))
        rig.sessions.on_failed(Failed(w2, 7, [r2], "stale"))
        rig.sessions.on_failed(Failed(w2, 1, [r2, "unknown"], "ew0 lost"))
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
        rig.sessions.on_failed(Failed(w1, 1, [r1], "ew0 lost"))
        assert "ew0 lost" in str((await read(handle))[2])
        assert rig.aborted() == [(w2, r2)]
        assert rig.sessions.stats().open == 0

    run(main())


@pytest.mark.parametrize("item", [(1, [5]), (-1, [5]), (0, [5], None, "error")])
def test_a_worker_that_breaks_the_protocol_ends_the_sequence_instead_of_hanging_it(item):
    async def main():
        rig = Rig()
        handle = rig.open()
        ((worker, request),) = rig.submitted()
        rig.tokens(worker, (request, *item))
        assert "aw0.1" in str((await read(handle))[2])
        assert rig.sessions.stats().running == 0

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


actions = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.integers(1, 3)),
        st.tuples(
            st.just("tokens"), st.integers(0, 7), st.integers(0, 9), st.integers(0, 4),
            st.integers(1, 3), st.sampled_from(["aw0", "aw1"]),
        ),
        st.tuples(st.just("step"), st.integers(0, 7), st.integers(1, 4), st.booleans()),
        st.tuples(st.just("lose"), st.sampled_from(["aw0", "aw1"]), st.integers(1, 3)),
        st.tuples(st.just("serve"), st.sampled_from(["aw0", "aw1"]), st.integers(1, 3)),
        st.tuples(st.just("read"), st.integers(0, 7)),
    ),
    max_size=60,
)  # fmt: skip


def truth(prompt):
    """The output of a failure-free run."""
    return [(prompt * 7 + i) % 50 for i in range(10)]


class Client:
    """Reads one handle in as many sittings as it likes."""

    def __init__(self, handle, prompts):
        self.handle, self.prompts = handle, prompts
        self.tokens, self.finish, self.error, self.done = {}, {}, None, False

    async def look(self):
        """Read what is there; go away (and come back later) where there is nothing."""
        task = asyncio.ensure_future(read(self.handle, self.tokens, self.finish))
        for _ in range(3):
            await asyncio.sleep(0)
        if task.done():
            self.done = True
            self.error = self.error or task.result()[2]
        task.cancel()

    def check(self):
        for i, prompt in enumerate(self.prompts):
            tokens = self.tokens.get(i, [])
            assert tokens == truth(prompt)[: len(tokens)]
            if self.finish.get(i):
                assert tokens == truth(prompt)


@settings(max_examples=200, deadline=None)
@given(actions)
def test_what_a_client_reads_is_the_failure_free_run_or_its_beginning(script):
    """Duplicated, reordered, stale and foreign deltas; lost and replaced workers."""

    async def main():
        rig = Rig()
        clients, prompt_of, owner, sent_to = [], {}, {}, {}
        serving = {"aw0": 1, "aw1": 1}

        def send(worker, incarnation, request, index, count):
            part = truth(prompt_of[request])[index : index + count]
            if (worker, incarnation) != owner[request]:
                part = [token + 100 for token in part]
            finish = "length" if index + len(part) == 10 else None
            rig.tokens(worker, (request, index, part, None, finish), incarnation=incarnation)

        def step(request, count, times=1):
            for _ in range(times):
                send(*owner[request], request, sent_to[request], count)
            sent_to[request] = min(sent_to[request] + count, 10)

        for action in script:
            requests = list(owner)
            match action:
                case ("open", n):
                    prompts = [len(requests) + i for i in range(n)]
                    before = len(rig.sent)
                    try:
                        handle = rig.open(*([p] for p in prompts))
                    except (Unavailable, Overloaded):
                        continue
                    clients.append(Client(handle, prompts))
                    for worker, message in rig.sent[before:]:
                        prompt_of[message.request] = message.prompt[0]
                        owner[message.request] = (worker, serving[worker])
                        sent_to[message.request] = 0
                case ("tokens", which, index, count, incarnation, worker) if requests:
                    request = requests[which % len(requests)]
                    # The owner leaves no hole and tells the truth; nobody else need do either.
                    if (worker, incarnation) == owner[request]:
                        index = min(index, sent_to[request])
                        sent_to[request] = max(sent_to[request], min(index + count, 10))
                    send(worker, incarnation, request, index, count)
                case ("step", which, count, again) if requests:
                    step(requests[which % len(requests)], count, 1 + again)
                case ("lose", worker, incarnation):
                    rig.sessions.on_worker_lost(worker, incarnation, "killed")
                case ("serve", worker, incarnation):
                    rig.sessions.on_worker_serving(worker, incarnation)
                    serving[worker] = max(serving[worker], incarnation)
                case ("read", which) if clients:
                    await clients[which % len(clients)].look()
            for client in clients:
                client.check()
        for request in list(owner):
            step(request, 10)
        for client in clients:
            await client.look()
            client.check()
            assert client.done
            assert client.error or all(client.finish[i] for i, _ in enumerate(client.prompts))
        stats = rig.sessions.stats()
        assert stats.open == stats.running == 0
        assert stats.running_on.keys() <= {"aw0", "aw1"}

    run(main())
