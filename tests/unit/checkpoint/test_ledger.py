"""Whatever is lost, torn, reordered, doubled or stale: nothing with a gap is ever committed."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.checkpoint.ledger import Ledger

LAYERS = 3
TOKENS = LAYERS  # the column of token ids in the model


def apply(ledger, record):
    """Do what a store does with one layer of a run, or with its token ids."""
    attempt, base, column, start, length = record
    if not ledger.write(attempt, base):
        return False
    if column == TOKENS:
        return ledger.commit(start, [1000 * attempt + p for p in range(start, start + length)])
    wanted = ledger.wanted(column, start, length)
    for position in wanted or ():
        ledger.stored(column, position)
    return wanted is not None


class Model:
    """Remembers every record and works the prefix out from all of them, each time anew."""

    def __init__(self):
        self.records = []

    def add(self, record):
        self.records.append(record)

    def cells(self):
        """(column, position) → attempt that wrote it, by the rules and without any frontier."""
        there, newest = {}, 1
        for attempt, base, column, start, length in self.records:
            if attempt < newest:
                continue
            if attempt > newest:
                newest = attempt
                there = {cell: by for cell, by in there.items() if cell[1] < base}
            if all((column, p) in there for p in range(start)):
                for p in range(start, start + length):
                    there.setdefault((column, p), attempt)
        return there

    def committed(self):
        there, n = self.cells(), 0
        while all((column, n) in there for column in range(LAYERS + 1)):
            n += 1
        return n


def steps(attempt, base, start, lengths):
    """The records of engine steps one after the other, all columns of each."""
    records = []
    for length in lengths:
        records += [(attempt, base, column, start, length) for column in range(LAYERS + 1)]
        start += length
    return records


def records():
    numbers = st.integers(0, 12)
    return st.tuples(st.integers(1, 3), numbers, st.integers(0, LAYERS), numbers, st.integers(1, 5))


@given(st.lists(records(), max_size=60))
def test_any_records_commit_the_longest_whole_prefix(sent):
    ledger, model = Ledger(LAYERS, 1), Model()
    for record in sent:
        apply(ledger, record)
        model.add(record)
        assert ledger.committed == model.committed()
        cells = model.cells()
        for layer in range(LAYERS):
            assert ledger.frontiers[layer] == sum(column == layer for column, _ in cells)
        assert ledger.tokens == [1000 * cells[TOKENS, p] + p for p in range(len(ledger.tokens))]
        assert ledger.extent == 1 + max((p for _, p in cells), default=-1)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.data())
def test_disturbed_steps_commit_no_more_than_arrived_and_all_once_resent(lengths, data):
    sent = steps(1, 0, 0, lengths)
    lost = data.draw(st.sets(st.integers(0, len(sent) - 1)))
    arriving = [r for i, r in enumerate(sent) if i not in lost]
    arriving += data.draw(st.lists(st.sampled_from(sent), max_size=10))  # doubled
    random.Random(data.draw(st.integers(0, 9))).shuffle(arriving)
    ledger = Ledger(LAYERS, 1)
    for record in arriving:
        before = ledger.committed
        apply(ledger, record)
        assert ledger.committed >= before
    arrived = set(arriving)
    whole = 0
    for number, length in enumerate(lengths):
        if not set(sent[number * (LAYERS + 1) : (number + 1) * (LAYERS + 1)]) <= arrived:
            break
        whole += length
    assert ledger.committed <= whole
    for record in sent:  # all again, in order
        assert apply(ledger, record)
    assert ledger.committed == sum(lengths)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.data())
def test_a_torn_step_commits_nothing_of_itself(lengths, data):
    sent = steps(1, 0, 0, lengths)
    cut = data.draw(st.integers(0, len(sent) - 1))
    ledger = Ledger(LAYERS, 1)
    for record in sent[:cut]:
        apply(ledger, record)
    assert ledger.committed == sum(lengths[: cut // (LAYERS + 1)])


@given(st.integers(0, 20), st.integers(0, 20), st.lists(records(), max_size=20))
def test_a_stale_attempt_changes_nothing(length, base, late):
    ledger = Ledger(LAYERS, 1)
    for record in steps(1, 0, 0, [length + 1]):
        apply(ledger, record)
    assert ledger.take_over(7)
    before = (ledger.committed, list(ledger.frontiers), list(ledger.tokens))
    for record in late:
        assert not apply(ledger, record)
    assert not ledger.take_over(6)
    assert (ledger.committed, list(ledger.frontiers), list(ledger.tokens)) == before


def test_taking_over_forgets_nothing_before_the_first_run_and_only_with_that():
    ledger = Ledger(LAYERS, 1)
    for record in steps(1, 0, 0, [10]):
        apply(ledger, record)
    assert ledger.take_over(2)
    assert ledger.committed == 10
    assert ledger.write(2, 8)
    assert ledger.frontiers == [8] * LAYERS
    assert len(ledger.tokens) == ledger.committed == ledger.extent == 8
    for record in steps(2, 8, 8, [3]):
        assert apply(ledger, record)
    assert ledger.write(2, 2)  # its base counts once
    assert ledger.committed == 11
    assert ledger.tokens == [1000 + p for p in range(8)] + [2000 + p for p in range(8, 11)]
