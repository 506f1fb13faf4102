"""An AW dies in the middle of a request: the answer is the same, whatever was asked for."""

from __future__ import annotations

import json

import pytest

TEXT = "the quick brown fox jumps over the lazy dog"
TALK = [{"role": "user", "content": "hi"}]
COMPLETION, CHAT = ("completions", {"prompt": "hi"}), ("chat/completions", {"messages": TALK})


def ask(http, path, body):
    """A whole answer, or the chunks of a streamed one, without what differs between any two."""
    response = http.post(f"/v1/{path}", json=body)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        parts = [response.json()]
    else:
        *events, done, end = response.text.split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        parts = [json.loads(event.removeprefix("data: ")) for event in events]
    return [{k: v for k, v in part.items() if k not in ("id", "created")} for part in parts]


def answers(gateway, http, path, body, deaths):
    gateway.worker.deaths = list(deaths)
    before = len(gateway.worker.submitted)
    answer = ask(http, path, body)
    assert gateway.worker.deaths == []
    return answer, gateway.worker.submitted[before:]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("deaths", [(1,), (2,), (5,), (3, 1, 2)])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETION[0], {**COMPLETION[1], "logprobs": 2, "return_token_ids": True}),
        (COMPLETION[0], {"prompt": ["a", "b b"], "n": 2, "seed": 3, "temperature": 1}),
        (CHAT[0], {**CHAT[1], "logprobs": True, "top_logprobs": 3}),
        (CHAT[0], {**CHAT[1], "n": 3, "temperature": 1, "return_token_ids": True}),
    ],
)
def test_logprobs_choices_and_usage(gateway, http, path, body, stream, deaths):
    body = body | {"max_tokens": 7, "ignore_eos": True, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    gateway.worker.masked = 1
    whole = ask(http, path, body)
    moved = gateway.sessions.stats().moved
    again, submitted = answers(gateway, http, path, body, deaths)
    if stream and len(again) > 1:
        # Choices take turns in another order; each one's chunks must be the same.
        assert by_choice(again) == by_choice(whole)
        assert again[-1]["usage"] == whole[-1]["usage"]
    else:
        assert again == whole
    later = [m for m in submitted if m.attempt > 1]
    assert later
    assert gateway.sessions.stats().moved == moved + len(later)


def by_choice(chunks):
    mine = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            usage = chunk["usage"] or {}
            mine.setdefault(choice["index"], []).append((choice, usage.get("completion_tokens")))
    return mine


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_that_straddle_the_death(gateway, http, codec, stream):
    gateway.worker.script = script = codec.encode(TEXT, add_special_tokens=False)
    at = len(script) // 2
    head = codec.decode(script[:at])
    stop = TEXT[len(head) - 2 : len(head) + 2]
    assert TEXT.find(stop) == len(head) - 2
    body = {"prompt": "hi", "max_tokens": 60, "stop": stop, "stream": stream}
    whole = ask(http, "completions", body)
    assert "".join(c["choices"][0]["text"] for c in whole) == TEXT[: len(head) - 2]
    assert whole[-1]["choices"][0]["stop_reason"] == stop
    for death in range(1, at + 1):
        assert answers(gateway, http, "completions", body, [death])[0] == whole


@pytest.mark.parametrize("min_tokens", [1, 4, 9])
def test_min_tokens_count_from_the_beginning(gateway, http, codec, min_tokens):
    gateway.worker.script = codec.encode(TEXT, add_special_tokens=False)
    body = {"prompt": "hi", "max_tokens": 60, "min_tokens": min_tokens, "stop": ["o", "e"]}
    whole = ask(http, "completions", body)
    assert whole[0]["usage"]["completion_tokens"] >= min_tokens
    for death in range(1, whole[0]["usage"]["completion_tokens"]):
        assert answers(gateway, http, "completions", body, [death])[0] == whole


def test_a_death_before_the_first_token(gateway, http):
    gateway.worker.hold = 0

    def die(_):
        gateway.worker.hold = gateway.worker.react = None
        gateway.worker.replace()

    gateway.worker.react = die
    again = ask(http, "completions", {"prompt": "hi", "max_tokens": 3, "ignore_eos": True})
    assert again[0]["usage"]["completion_tokens"] == 3
    assert [m.attempt for m in gateway.worker.submitted] == [1, 2]
    lines = http.get("/metrics").text.splitlines()
    assert "tarragon_waiting_sequences 0.0" in lines
    assert f"tarragon_moved_sequences_total {gateway.sessions.stats().moved}.0" in lines
    assert 'tarragon_resumed_sequences_total{how="restored"} 0.0' in lines
