"""Whatever happens, what a store is given of a request has no hole and no overlap, and is whole in
the end.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tarragon_hpc.checkpoint.pieces import Store
from tarragon_hpc.checkpoint.protection import Protection
from tarragon_hpc.wire.kv import Run

TOKEN = 10
CATCH_UP = 20 * 8 * TOKEN  # 8 rows in the bucket
NAMES = ["cs0", "cs1", "cs2"]


class Steps(RuleBasedStateMachine):
    """Requests come, grow and go; stores come, refuse, fill up and go."""

    replicas = 1

    def __init__(self):
        super().__init__()
        self.protection = Protection(self.replicas, CATCH_UP, TOKEN)
        self.stores = {}
        self.links = 0
        self.now = 0.0
        self.ends = {}  # by key: positions in the cache
        self.attempts = {}
        self.given = {}  # by (store, key): positions it was given, from 0
        self.held = {}  # by (store, key): positions that it had before
        self.refused = set()

    def tell(self):
        self.protection.set_stores(list(self.stores.values()))
        live = set(self.stores.values())
        self.given = {at: n for at, n in self.given.items() if at[0] in live}

    @rule(name=st.sampled_from(NAMES))
    def connect(self, name):
        self.links += 1
        self.stores[name] = Store(name, 1, self.links)
        self.tell()

    @precondition(lambda self: self.stores)
    @rule(data=st.data())
    def lose(self, data):
        del self.stores[data.draw(st.sampled_from(sorted(self.stores)))]
        self.tell()

    @rule(key=st.integers(1, 5), data=st.data())
    def open(self, key, data):
        stores = sorted(self.stores.values())
        holders = data.draw(
            st.lists(st.sampled_from(stores), unique=True) if stores else st.just([])
        )
        held = {store: data.draw(st.integers(0, 9)) for store in holders}
        self.attempts[key] = self.attempts.get(key, 0) + 1
        self.protection.open(key, self.attempts[key], held)
        self.ends[key] = max(held.values(), default=0)
        self.refused = {at for at in self.refused if at[1] != key}
        self.given = {at: n for at, n in self.given.items() if at[1] != key}
        self.held = {at: n for at, n in self.held.items() if at[1] != key}
        self.held |= {(store, key): n for store, n in held.items()}

    @precondition(lambda self: self.ends)
    @rule(data=st.data())
    def close(self, data):
        key = data.draw(st.sampled_from(sorted(self.ends)))
        self.protection.close(key)
        del self.ends[key]

    @precondition(lambda self: self.ends)
    @rule(data=st.data(), wait=st.sampled_from([0.0, 0.001, 0.02, 1.0]))
    def step(self, data, wait):
        self.now += wait
        grown = {}
        for key in data.draw(st.lists(st.sampled_from(sorted(self.ends)), unique=True)):
            self.ends[key] += data.draw(st.integers(1, 6))
            grown[key] = self.ends[key]
        room = None
        if data.draw(st.booleans()):
            room = {s: data.draw(st.integers(0, 12)) for s in self.stores.values()}
        skip = data.draw(st.booleans())
        self.copy(grown, room, skip=skip)

    @precondition(lambda self: self.ends)
    @rule(data=st.data())
    def preempt(self, data):
        """The cache of a request is emptied, and it is computed anew."""
        self.ends[data.draw(st.sampled_from(sorted(self.ends)))] = 0

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def refuse(self, data):
        store, key = data.draw(st.sampled_from(sorted(self.given)))
        if key in self.ends:
            self.protection.answered(store, [Run(key, self.attempts[key], 0, 0, 1)], {key})
            self.refused.add((store, key))

    def copy(self, step, room, *, skip):
        before = dict(self.given)
        pieces = self.protection.plan(step.items(), self.now, room)
        seen = set()
        for piece in pieces:
            at = (piece.store, piece.key)
            assert at not in seen
            seen.add(at)
            assert piece.store in self.stores.values()
            assert at not in self.refused
            assert piece.attempt == self.attempts[piece.key]
            if at in before:
                assert piece.start == before[at], "a hole, or an overlap"
            else:
                assert piece.start == piece.base
                assert piece.base in (0, self.held.get(at, 0))
            assert 0 < piece.length <= step[piece.key] - piece.start
            self.given[at] = piece.start + piece.length
        for store in self.stores.values() if room is not None else ():
            assert sum(p.length for p in pieces if p.store == store) <= room[store]
        if skip:
            self.protection.skipped(pieces)
            self.given = before

    def teardown(self):
        """With time and room everything is covered."""
        for _ in range(self.replicas * (sum(self.ends.values()) // 8 + len(self.ends))):
            self.now += 1.0
            self.copy(self.ends, None, skip=False)
        for key, end in self.ends.items():
            given = [
                max(self.given.get((s, key), 0), self.held.get((s, key), 0)) >= end
                for s in self.stores.values()
            ]
            refused = sum((s, key) in self.refused for s in self.stores.values())
            assert sum(given) >= min(self.replicas, len(self.stores)) - refused


class StepsOfTwo(Steps):
    """With two replicas."""

    replicas = 2


TestOneReplica = Steps.TestCase
TestTwoReplicas = StepsOfTwo.TestCase
TestOneReplica.settings = TestTwoReplicas.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None
)
