from __future__ import annotations

import json

import fsspec
import pytest

from tarragon_hpc.errors import UserError
from tarragon_hpc.generate.outputs import Outcome, ResultFile, encode, review

KNOWN = {"a", "b", "c"}
GOOD = Outcome("a", 200, {"choices": []}, "req-1")


def results(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_line_is_in_the_openai_batch_output_format():
    line = json.loads(encode(GOOD))
    assert line.pop("id").startswith("batch_req_")
    assert line == {
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "req-1", "body": {"choices": []}},
        "error": None,
    }
    lost = json.loads(encode(Outcome("b", None, problem="gone")))
    assert lost["response"] is None
    assert lost["error"] == {"code": "no_response", "message": "gone"}


def test_results_are_on_disk_as_they_are_written(tmp_path):
    path = tmp_path / "out.jsonl"
    with ResultFile(str(path), KNOWN) as file:
        assert file.done == frozenset()
        file.write(GOOD)
        assert len(results(path)) == 1
        file.write(Outcome("b", 400, {"error": {}}))
        assert len(results(path)) == 2


def test_continues_and_retries_only_what_was_not_the_requests_fault(tmp_path):
    path = tmp_path / "out.jsonl"
    with ResultFile(str(path), KNOWN) as file:
        file.write(Outcome("b", 500, {"error": {}}))
        file.write(GOOD)
        file.write(Outcome("c", 404, {"error": {}}))
    with ResultFile(str(path), KNOWN) as file:
        assert file.done == {"a", "c"}
        file.write(Outcome("b", 200, {}))
    assert [r["custom_id"] for r in results(path)] == ["a", "c", "b"]
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("kept", [1, 10, -1])
def test_a_torn_last_line_is_dropped(tmp_path, kept):
    path = tmp_path / "out.jsonl"
    path.write_bytes(encode(GOOD) + encode(Outcome("b", 200, {}))[:kept])
    with ResultFile(str(path), KNOWN) as file:
        assert file.done == {"a"}
        file.write(Outcome("b", 200, {}))
    assert [r["custom_id"] for r in results(path)] == ["a", "b"]


def test_a_result_that_stands_twice_is_kept_once():
    again = review([encode(GOOD), encode(GOOD)], "out", KNOWN)
    assert (again.done, again.drop) == ({"a"}, {1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"my notes\n", "line 1: is not a result; name another file"),
        (b"my notes", "line 1: is not a result; name another file"),
        (encode(GOOD) + b"[]\n", "line 2: is not a result"),
        (encode(Outcome("z", 200, {})), "line 1: custom_id 'z' is not in the input"),
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path, content, message):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        ResultFile(str(path), KNOWN)
    assert message in str(caught.value)
    assert path.read_bytes() == content


def test_only_one_writer(tmp_path):
    path = str(tmp_path / "out.jsonl")
    with ResultFile(path, KNOWN) as file:
        file.write(Outcome("b", 500, {}))
        with pytest.raises(UserError, match="being written by another"):
            ResultFile(path, KNOWN)
    with (
        ResultFile(path, KNOWN),  # rewrites the file, which must not lose the lock
        pytest.raises(UserError, match="being written by another"),
    ):
        ResultFile(path, KNOWN)


def test_unwritable_path_is_named(tmp_path):
    path = str(tmp_path / "no" / "such" / "out.jsonl")
    with pytest.raises(UserError) as caught:
        ResultFile(path, KNOWN)
    assert str(caught.value).startswith(path)


def test_writes_and_continues_by_url():
    url = "memory://outputs/out.jsonl"
    with ResultFile(url, KNOWN) as file:
        file.write(GOOD)
        file.write(Outcome("b", 502, {}))
    with ResultFile(url, KNOWN) as file:
        assert file.done == {"a"}
        file.write(Outcome("b", 200, {}))
    with fsspec.open(url, "rb") as stored:
        assert [json.loads(line)["custom_id"] for line in stored] == ["a", "b"]
