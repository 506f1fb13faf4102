from __future__ import annotations

import json

import fsspec
import pytest

from tarragon_hpc.errors import UserError
from tarragon_hpc.generate.inputs import parse_requests, read_requests

BATCH = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}


def parse(*lines):
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    return parse_requests(encoded, "in.jsonl")


def test_batch_and_plain_lines_mix():
    chat = [{"role": "user", "content": "Hi"}]
    first, second, third, fourth = parse(
        BATCH,
        {"prompt": "Once", "max_tokens": 5},
        b"",
        {"messages": chat, "custom_id": "c"},
        {**BATCH, "custom_id": "d", "url": "/v1/chat/completions", "body": {"messages": chat}},
    )
    assert (first.custom_id, first.url, first.body) == ("a", "/v1/completions", {"prompt": "x"})
    assert (second.custom_id, second.body) == ("2", {"prompt": "Once", "max_tokens": 5})
    assert (third.custom_id, third.url, third.line) == ("c", "/v1/chat/completions", 4)
    assert fourth.url == "/v1/chat/completions"


def test_token_ids_and_byte_order_mark():
    (request,) = parse(b"\xef\xbb\xbf" + b'{"prompt": [1, 2]}\r\n')
    assert request.body == {"prompt": [1, 2]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([BATCH, b"{oops"], "line 2: is not JSON"),
        ([b'{"prompt": "\xff"}'], "line 1: is not JSON"),
        ([[1]], "line 1: is not a JSON object"),
        (
            [BATCH, {"prompt": "x", "custom_id": "a"}],
            "line 2: custom_id 'a' is also that of line 1",
        ),
        ([{"prompt": "x", "custom_id": "2"}, {"prompt": "y"}], "line 2: custom_id '2' is also"),
        ([{"prompt": "x", "custom_id": 3}], "line 1: custom_id 3: must be a non-empty string"),
        ([{"text": "x"}], "line 1: must have one of prompt, messages, or body"),
        ([{"prompt": "x", "messages": []}], "must have one of prompt, messages, or body"),
        ([{**BATCH, "method": "GET"}], "line 1: method 'GET': only 'POST' is allowed"),
        ([{**BATCH, "url": "/v1/embeddings"}], "url '/v1/embeddings': allowed are /v1/completions"),
        ([{**BATCH, "body": "x"}], "body: must be an object"),
        ([{**BATCH, "boddy": 1}], "boddy: unknown key; allowed: body, custom_id, method, url"),
        ([{"prompt": "x", "stream": True}], "stream: results are written whole"),
        ([], "holds no requests"),
        ([b"\n", b"  "], "holds no requests"),
    ],
)
def test_mistakes_name_the_line(lines, message):
    with pytest.raises(UserError) as caught:
        parse(*lines)
    assert str(caught.value).startswith("in.jsonl: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reads_by_url():
    with fsspec.open("memory://inputs/in.jsonl", "wb") as file:
        file.write(b'{"prompt": "x"}\n')
    (request,) = read_requests("memory://inputs/in.jsonl")
    assert request.body == {"prompt": "x"}


@pytest.mark.parametrize("path", ["missing.jsonl", "nosuch://x/y", "."])
def test_unreadable_file_is_named(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read_requests(path)
    assert str(caught.value).startswith(f"{path}: ")
