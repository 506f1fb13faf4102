"""DESIGN invariant 1: whatever happens to AWs, a client reads the failure-free output, once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from tarragon_hpc.errors import Overloaded, Unavailable
from tarragon_hpc.wire.common import SamplingSpec, TokenLogprobs
from tarragon_hpc.wire.to_head import Failed
from tarragon_hpc.wire.to_worker import Abort, Submit
from tests.unit.gateway.rig import Rig, read, run

LENGTH = 10
PLACES = st.sampled_from(["aw0", "aw1", "aw2"])
WHICH = st.integers(0, 20)

actions = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.integers(1, 3)),
        st.tuples(st.just("step"), WHICH, st.integers(1, 4), st.integers(0, 2)),
        st.tuples(st.just("late"), WHICH, st.integers(0, 9), st.integers(1, 4)),
        st.tuples(st.just("nonsense"), WHICH, st.sampled_from(["gap", "conflict", "error"])),
        st.tuples(st.just("fail"), WHICH),
        st.tuples(st.sampled_from(["serve", "lose", "drain", "silent", "heard"]), PLACES),
        st.tuples(st.just("read"), WHICH),
    ),
    max_size=60,
)


def truth(prompt):
    """The output of a failure-free run."""
    return [(prompt * 7 + i) % 50 for i in range(LENGTH)]


@dataclass
class Work:
    """One Submit, as its AW sees it; `running` until it is aborted or its AW is lost."""

    worker: str
    incarnation: int
    submit: Submit
    done: int
    running: bool = True


class World(Rig):
    """AWs that do as they are told, and a network that delivers old messages late and twice."""

    def __init__(self):
        super().__init__(workers=(), spec=SamplingSpec(max_tokens=LENGTH, logprobs=0))
        self.numbers, self.seen, self.work, self.clients = {}, 0, [], []
        for place in ("aw0", "aw1"):
            self.serve(place)

    def look(self):
        """What the gateway has sent since."""
        for worker, message in self.sent[self.seen :]:
            if isinstance(message, Submit):
                assert message.tokens == truth(message.prompt[0])[: len(message.tokens)]
                assert len(message.tokens) < LENGTH
                number = self.numbers[worker]
                self.work.append(Work(worker, number, message, len(message.tokens)))
            elif isinstance(message, Abort):
                self.stop(worker, message.requests)
        self.seen = len(self.sent)
        running = [w.submit.request for w in self.running()]
        assert len(running) == len(set(running)), "one AW per sequence"

    def running(self):
        return [work for work in self.work if work.running]

    def stop(self, worker, requests=None):
        for work in self.running():
            if work.worker == worker and (requests is None or work.submit.request in requests):
                work.running = False

    def serve(self, place):
        self.stop(place)
        self.numbers[place] = self.numbers.get(place, 0) + 1
        self.sessions.on_worker_serving(place, self.numbers[place])

    def lose(self, place):
        self.stop(place)
        self.sessions.on_worker_lost(place, self.numbers.get(place, 0), "killed")

    def say(self, work, index, count, *, lie=False):
        part = truth(work.submit.prompt[0])[index : index + count]
        part = [token + 100 * lie for token in part]
        finish = "length" if index + len(part) == LENGTH else None
        scores = [TokenLogprobs([token], [-float(token)], 1) for token in part]
        item = (work.submit.request, index, part, scores, finish)
        about = {"incarnation": work.incarnation, "attempt": work.submit.attempt}
        self.tokens(work.worker, item, **about)

    def step(self, work, count, again=0):
        """The AW goes on; what it says comes `again` times more."""
        index, work.done = work.done, min(work.done + count, LENGTH)
        work.running = work.done < LENGTH
        for _ in range(1 + again):
            self.say(work, index, count)

    def act(self, action):
        match action:
            case ("open", n):
                self.open_for(n)
            case ("step", which, count, again) if running := self.running():
                self.step(running[which % len(running)], count, again)
            case ("late", which, index, count) if self.work:
                work = self.work[which % len(self.work)]
                # The current attempt tells the truth; for what came before it anything goes.
                lie = not work.running
                index = index if lie else min(index, work.done)
                self.say(work, index, count, lie=lie)
                if not lie:
                    work.done = max(work.done, min(index + count, LENGTH))
                    work.running = work.done < LENGTH
            case ("nonsense", which, kind) if running := self.running():
                work = running[which % len(running)]
                work.running = False
                request, done = work.submit.request, work.done
                item = {
                    "gap": (request, done + 1, [1], [TokenLogprobs([1], [0.0], 1)]),
                    "conflict": (request, 0, [99], [TokenLogprobs([99], [0.0], 1)]),
                    "error": (request, done, [], [], "error"),
                }["gap" if kind == "conflict" and not done else kind]
                about = {"incarnation": work.incarnation, "attempt": work.submit.attempt}
                self.tokens(work.worker, item, **about)
            case ("fail", which) if running := self.running():
                work = running[which % len(running)]
                work.running = False
                who = work.worker, work.incarnation
                self.sessions.on_failed(Failed(*who, [work.submit.request], "ew0 lost"))
            case ("serve", place):
                self.serve(place)
            case ("lose", place):
                self.lose(place)
            case ("drain" | "silent" | "heard" as what, place):
                name = {"drain": "draining"}.get(what, what)
                tell = getattr(self.sessions, f"on_worker_{name}")
                tell(place, self.numbers.get(place, 0))
        self.look()

    def open_for(self, n):
        prompts = [len(self.work) + i for i in range(n)]
        try:
            handle = self.open(*([p] for p in prompts))
        except (Unavailable, Overloaded):
            return
        self.clients.append(Client(handle, prompts))


class Client:
    """Reads one handle in as many sittings as it likes."""

    def __init__(self, handle, prompts):
        self.handle, self.prompts = handle, prompts
        self.tokens, self.finish, self.error, self.done = {}, {}, None, False

    async def read(self):
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


@settings(max_examples=300, deadline=None)
@given(actions)
def test_a_client_reads_the_failure_free_output(script):
    """Losses, drains, silences; duplicated, late, lying, senseless and stale messages."""

    async def main():
        world = World()
        for action in script:
            if action[0] == "read" and world.clients:
                await world.clients[action[1] % len(world.clients)].read()
            world.act(action)
            for client in world.clients:
                client.check()
        # A fresh AW outlasts what is left, retries included.
        world.numbers["aw9"] = 0
        world.serve("aw9")
        world.look()
        for place in ("aw0", "aw1", "aw2"):
            world.lose(place)
            world.look()
        assert world.sessions.stats().waiting == 0
        while running := world.running():
            world.step(running[0], 3)
            world.look()
        for client in world.clients:
            await client.read()
            client.check()
            assert client.done
            if client.error is None:
                assert client.tokens == {i: truth(p) for i, p in enumerate(client.prompts)}
                assert set(client.finish.values()) == {"length"}
            else:
                assert "5 times in a row" in str(client.error)
        stats = world.sessions.stats()
        assert stats.open == stats.running == 0
        assert stats.running_on.keys() == {"aw9"}

    run(main())
