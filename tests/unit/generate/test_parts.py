from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import fsspec
import pytest

from tarragon_hpc.errors import UserError
from tarragon_hpc.generate.outputs import Outcome, encode
from tarragon_hpc.generate.parts import Part, begun, check_target, merge, survey

KNOWN = frozenset("abc")
USAGE = {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}


def good(name: str) -> Outcome:
    return Outcome(name, 200, USAGE)


def ids(data: bytes) -> list[str]:
    return [json.loads(line)["custom_id"] for line in data.splitlines()]


def test_each_head_writes_a_part_of_its_own_and_knows_the_others(tmp_path):
    target = str(tmp_path / "out.jsonl")
    with Part(tmp_path) as first:
        first.write(good("a"))
        assert (first.number, first.superseded) == (1, False)
        with Part(tmp_path) as second:
            assert second.number == 2
            assert first.superseded
            done, tally = survey(tmp_path, target, KNOWN)
            assert (done, tally.done, tally.prompt_tokens, tally.tokens) == ({"a"}, 1, 1, 2)
            second.write(good("b"))
    assert survey(tmp_path, target, KNOWN)[0] == {"a", "b"}


def test_what_a_head_that_was_given_up_still_writes_changes_nothing(tmp_path):
    target = tmp_path / "out.jsonl"
    with Part(tmp_path) as zombie, Part(tmp_path) as current:
        zombie.write(good("a"))
        for name in "abc":
            current.write(good(name))
        zombie.write(good("b"))
        assert merge(tmp_path, str(target), KNOWN).done == 3
        first = target.read_bytes()
        assert sorted(ids(first)) == ["a", "b", "c"]
        zombie.write(good("c"))
        merge(tmp_path, str(target), KNOWN)
        assert target.read_bytes() == first


def test_a_failure_counts_until_there_is_a_result(tmp_path):
    target = tmp_path / "out.jsonl"
    with Part(tmp_path) as part:
        part.write(Outcome("a", 500, {"error": {"message": "first"}}))
        part.write(Outcome("a", 500, {"error": {"message": "second"}}))
        part.write(Outcome("b", 502, {}))
        part.write(good("b"))
        part.write(Outcome("c", 400, {"error": {"message": "no"}}))
    tally = merge(tmp_path, str(target), KNOWN)
    assert (tally.done, tally.failed, tally.refused) == (3, 1, 1)
    assert ids(target.read_bytes()) == ["b", "c", "a"]
    assert b"second" in target.read_bytes()
    with Part(tmp_path) as part:
        assert survey(tmp_path, str(target), KNOWN)[0] == {"b", "c"}
        part.write(good("a"))
    assert merge(tmp_path, str(target), KNOWN).failed == 0
    assert sorted(ids(target.read_bytes())) == ["a", "b", "c"]
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["out.jsonl"]


def test_results_of_an_earlier_run_in_the_target_stay(tmp_path):
    target = tmp_path / "out.jsonl"
    target.write_bytes(encode(good("b")) + encode(good("a"))[:-5])
    run = tmp_path / "run"
    run.mkdir()
    assert survey(run, str(target), KNOWN)[0] == {"b"}
    with Part(run) as part:
        part.write(good("a"))
    merge(run, str(target), KNOWN)
    assert ids(target.read_bytes()) == ["b", "a"]


def test_by_url(tmp_path):
    url = "memory://parts/out.jsonl"
    with Part(tmp_path) as part:
        part.write(good("a"))
        merge(tmp_path, url, KNOWN)
        part.write(good("b"))
        merge(tmp_path, f"file://{tmp_path}/out.jsonl", KNOWN)
        merge(tmp_path, url, KNOWN)
    with fsspec.open(url, "rb") as file:
        assert ids(file.read()) == ["a", "b"]
    assert ids((tmp_path / "out.jsonl").read_bytes()) == ["a", "b"]


def test_the_beginning_is_remembered(tmp_path):
    before = time.time()
    since = begun(tmp_path)
    assert before <= since <= time.time()
    assert begun(tmp_path) == since


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"my notes\n", "line 1: is not a result; name another file"),
        (encode(good("z")), "line 1: custom_id 'z' is not in the input"),
    ],
)
def test_a_target_of_something_else_is_left_alone(tmp_path, content, message):
    target = tmp_path / "out.jsonl"
    target.write_bytes(content)
    with pytest.raises(UserError, match=message):
        check_target(str(target), KNOWN)
    assert target.read_bytes() == content


@pytest.mark.parametrize("target", ["/no/such/folder/out", "nope://x/out"])
def test_a_target_that_cannot_be_is_named(target):
    with pytest.raises(UserError) as caught:
        check_target(target, KNOWN)
    assert str(caught.value).startswith(target)


WRITER = """
import sys, itertools
from pathlib import Path
from tarragon_hpc.generate.outputs import Outcome
from tarragon_hpc.generate.parts import Part
with Part(Path(sys.argv[1])) as part:
    print(part.number, flush=True)
    for i in itertools.count():
        part.write(Outcome(str(i % 5000), 200, {"pad": "x" * 3000}))
"""


def test_writers_that_are_killed_leave_whole_results_only(tmp_path):
    known = frozenset(map(str, range(5000)))
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    numbers = {int(writer.stdout.readline()) for writer in writers}
    assert numbers == {1, 2, 3}
    time.sleep(0.2)
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    done, tally = survey(tmp_path, str(tmp_path / "out"), known)
    assert tally.done == len(done) > 0
    merge(tmp_path, str(tmp_path / "out"), known)
    found = ids((tmp_path / "out").read_bytes())
    assert sorted(found) == sorted(done)
