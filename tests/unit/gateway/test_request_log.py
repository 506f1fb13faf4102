"""The request log as a file."""

from __future__ import annotations

import logging
import os
import time

import pytest

from tarragon_hpc.errors import Unavailable
from tarragon_hpc.gateway.records import Item, Kept, Produced, encode
from tarragon_hpc.gateway.request_log import RequestLog, log_files, recover
from tarragon_hpc.gateway.tokenlog import TokenLog
from tarragon_hpc.wire.common import TokenDelta
from tests.unit.gateway.test_records import opened


def request(*names):
    line = opened(*names)
    return Kept(line, [TokenLog() for _ in names])


def grow(log, kept, *tokens, position=0):
    """Tokens of a sequence, into its log and then into the file."""
    name, mine = kept.opened.sequences[position], kept.logs[position]
    had = len(mine.token_ids)
    mine.append(TokenDelta(name, had, list(tokens)))
    log.produced([Item(name, had, list(tokens))])


def names(directory):
    return [path.name for path in log_files(directory)]


def known(directory):
    kept, wrong = recover(log_files(directory))
    assert wrong == []
    return {k.name: [log.token_ids for log in k.logs] for k in kept}


def settle(log):
    if log._retiring is not None:
        log._retiring.join()


def test_every_line_is_there_at_once_and_nobody_else_may_read_it(tmp_path):
    log = RequestLog()
    log.open(tmp_path, 3)
    kept = request("a", "b")
    log.opened(kept)
    assert known(tmp_path) == {"a": [[], []]}
    grow(log, kept, 1, 2)
    grow(log, kept, 3, position=1)
    assert known(tmp_path) == {"a": [[1, 2], [3]]}
    log.ended("b", Unavailable("lost"))
    (found,), _ = recover(log_files(tmp_path))
    assert found.ended[1].problem.message == "lost"
    log.forgotten("a")
    assert known(tmp_path) == {}
    assert names(tmp_path) == ["requests.3.jsonl"]
    assert (tmp_path / "requests.3.jsonl").stat().st_mode & 0o777 == 0o600
    log.close()
    log.close()
    log.opened(request("c"))
    assert known(tmp_path) == {}


def test_a_log_that_was_never_opened_takes_everything():
    log, kept = RequestLog(), request("a")
    log.opened(kept)
    grow(log, kept, 1)
    log.ended("a", None)
    log.forgotten("a")
    log.close()


def test_it_is_rewritten_when_most_of_it_is_about_the_past(tmp_path):
    log = RequestLog(min_bytes=4000)
    log.open(tmp_path, 1)
    stays = request("stays", "too")
    log.opened(stays)
    sizes = []
    for i in range(200):
        kept = request(f"r{i}")
        log.opened(kept)
        grow(log, kept, *range(20))
        grow(log, stays, i)
        log.ended("too", Unavailable("gone"))
        log.forgotten(f"r{i}")
        sizes.append(log.size)
        assert known(tmp_path) == {"stays": [list(range(i + 1)), []]}
    assert max(sizes) < 5000
    settle(log)
    (left,) = names(tmp_path)
    assert int(left.split(".")[2]) > 10
    assert recover(log_files(tmp_path))[0][0].ended[1].problem is not None


def test_what_is_wanted_is_never_rewritten_more_than_its_size_is_worth(tmp_path):
    log = RequestLog(min_bytes=1000)
    log.open(tmp_path, 1)
    kept = request("a")
    log.opened(kept)
    written = plain = 0
    for i in range(3000):
        before = log.size
        grow(log, kept, i)
        written += log.size - before if log.size > before else log.size
        plain += len(encode(Produced([Item("a", i, [i])])))
    assert plain / 2 < written < 3 * plain
    assert known(tmp_path) == {"a": [list(range(3000))]}


def test_the_next_head_takes_over_and_deletes_what_was_before(tmp_path):
    first = RequestLog()
    first.open(tmp_path, 1)
    kept, gone = request("a"), request("b")
    for one in (kept, gone):
        first.opened(one)
        grow(first, one, 1)
    first.forgotten("b")
    found, _ = recover(log_files(tmp_path))
    second = RequestLog()
    second.open(tmp_path, 2, found)
    settle(second)
    assert names(tmp_path) == ["requests.2.jsonl"]
    # The old one does not know yet: what it still writes is nobody's.
    grow(first, kept, 7)
    assert known(tmp_path) == {"a": [[1]]}
    grow(second, found[0], 8)
    assert known(tmp_path) == {"a": [[1, 8]]}


def test_a_head_that_dies_while_it_takes_over(tmp_path):
    first = RequestLog()
    first.open(tmp_path, 1)
    kept = request("a")
    first.opened(kept)
    grow(first, kept, *range(50))
    first.close()
    before = (tmp_path / "requests.1.jsonl").read_bytes()
    found, _ = recover(log_files(tmp_path))
    second = RequestLog()
    second.open(tmp_path, 2, found)
    settle(second)
    second.close()
    whole = (tmp_path / "requests.2.jsonl").read_bytes()
    for cut in range(0, len(whole), 7):
        (tmp_path / "requests.1.jsonl").write_bytes(before)
        (tmp_path / "requests.2.jsonl").write_bytes(whole[:cut])
        assert known(tmp_path) == {"a": [list(range(50))]}


def test_the_same_head_number_twice(tmp_path):
    for _ in range(3):
        log = RequestLog()
        log.open(tmp_path, 5)
        log.close()
    assert names(tmp_path) == ["requests.5.jsonl", "requests.5.2.jsonl", "requests.5.3.jsonl"]


def test_other_files_are_let_alone(tmp_path):
    for name in ("requests.jsonl", "requests.0.jsonl", "requests.1.json", "journal.jsonl"):
        (tmp_path / name).write_text("x")
    assert log_files(tmp_path) == []


def test_a_disk_that_is_full_is_said_once_and_the_service_goes_on(tmp_path, caplog):
    log = RequestLog()
    log.open(tmp_path, 1)
    kept = request("a")
    log.opened(kept)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._file)
    os.close(full)
    with caplog.at_level(logging.ERROR):
        grow(log, kept, 1)
        grow(log, kept, 2)
    assert len(caplog.records) == 1
    assert "do not survive this head" in caplog.text
    assert "No space left" in caplog.text
    assert known(tmp_path) == {"a": [[]]}


def test_a_directory_that_is_not_there(tmp_path, caplog):
    log = RequestLog()
    log.open(tmp_path / "nowhere", 1)
    log.opened(request("a"))
    assert "do not survive" in caplog.text


@pytest.mark.parametrize("sequences", [64])
def test_a_message_of_a_full_batch_costs_little(tmp_path, sequences, capsys):
    log = RequestLog()
    log.open(tmp_path, 1)
    many = [request(f"abcdef01-{i}") for i in range(sequences)]
    for kept in many:
        log.opened(kept)
    rounds = 300
    began = time.perf_counter()
    for i in range(rounds):
        log.produced([Item(kept.name, i, [31_999]) for kept in many])
    took = (time.perf_counter() - began) / rounds
    with capsys.disabled():
        print(f" {took * 1e6:.0f} µs per message of {sequences} tokens ")
    assert took < 0.005
