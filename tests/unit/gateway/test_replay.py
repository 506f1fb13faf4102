"""Streams that a client comes back to."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from tarragon_hpc.errors import RequestError
from tarragon_hpc.gateway.replay import read_position
from tarragon_hpc.wire.to_head import Failed
from tests.unit.gateway.test_front import error_of

ROUTE = "/v1/completions"
TALK = {"messages": [{"role": "user", "content": "hi"}]}


def body(**more):
    return {"prompt": "hi", "max_tokens": 6, "ignore_eos": True, "stream": True, **more}


def numbered(text):
    """(id, data) of every event."""
    *parts, end = text.split("\n\n")
    assert end == ""
    events = []
    for part in parts:
        number, data = part.split("\n")
        assert number.startswith("id: ")
        events.append((int(number[4:]), data.removeprefix("data: ")))
    return events


def name_of(events):
    return json.loads(events[0][1])["id"]


def whole(http, **more):
    response = http.post(ROUTE, json=body(resumable=True, **more))
    assert response.status_code == 200, response.text
    return numbered(response.text)


def resume(http, name, after=None, **headers):
    query = {} if after is None else {"after": after}
    return http.get(f"/v1/requests/{name}/stream", params=query, headers=headers)


@pytest.fixture
def own(start, model_dir):
    """Start a gateway with some configuration; (gateway, client)."""
    opened = []

    def make(**config):
        running = start(model_dir, **config)
        gateway = running.__enter__()
        client = httpx.Client(base_url=gateway.url, timeout=10)
        opened.append((running, client))
        return gateway, client

    yield make
    for running, client in opened:
        client.close()
        running.__exit__()


def leave_after(http, gateway, count, **more):
    """Open a resumable stream, go away after some of its events; returns them."""
    gateway.worker.hold = count
    with http.stream("POST", ROUTE, json=body(resumable=True, **more)) as response:
        lines = response.iter_lines()
        seen = [(int(next(lines)[4:]), next(lines)[6:], next(lines)) for _ in range(count)]
        gateway.call(int)  # one more turn of its loop: the worker has seen that it is to wait
    return [(number, data) for number, data, _ in seen]


def go_on(gateway):
    """The worker makes the tokens that it was holding back."""
    gateway.worker.hold, message = None, gateway.worker.submitted[-1]
    delta = gateway.sessions._open[message.request].log.token_ids
    gateway.call(gateway.worker._step, message, len(delta))


@pytest.mark.parametrize("route", [ROUTE, "/v1/chat/completions"])
def test_events_are_numbered_and_otherwise_as_ever(gateway, http, route):
    more = body(seed=7) | TALK if "chat" in route else body(seed=7)
    more.pop("prompt" if "chat" in route else "messages", None)
    plain = http.post(route, json=more).text
    assert "id: " not in plain.replace('"id": ', "")
    events = numbered(http.post(route, json=more | {"resumable": True}).text)
    assert [number for number, _ in events] == list(range(1, len(events) + 1))
    assert events[-1][1] == "[DONE]"
    chunks = [json.loads(part[6:]) for part in plain.split("\n\n")[:-2]]
    mine = [json.loads(data) for _, data in events[:-1]]
    for chunk in chunks + mine:
        del chunk["id"], chunk["created"]
    assert mine == chunks


def test_resumable_is_for_streams(gateway, http):
    error = error_of(http.post(ROUTE, json={"prompt": "x", "resumable": True}), 400)
    assert error["param"] == "resumable"
    assert "stream=true" in error["message"]
    error_of(http.post(ROUTE, json=body(resumable="yes")), 400, param="resumable")


def test_a_finished_stream_is_read_again_from_anywhere(gateway, http):
    events = whole(http)
    name = name_of(events)
    for after in range(len(events) + 1):
        response = resume(http, name, after)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert numbered(response.text) == events[after:]
    assert numbered(resume(http, name).text) == events
    assert numbered(resume(http, name, **{"Last-Event-ID": "3"}).text) == events[3:]
    # A browser reconnects to the address it began with.
    assert numbered(resume(http, name, 0, **{"Last-Event-ID": "3"}).text) == events[3:]
    error = error_of(resume(http, name, len(events) + 1), 400, param="after")
    assert f"{len(events) + 1} is beyond the last event so far, {len(events)}" in error["message"]


def test_the_request_id_is_a_name_too(gateway, http):
    response = http.post(ROUTE, json=body(resumable=True), headers={"x-request-id": "mine 7"})
    events = numbered(response.text)
    assert response.headers["x-request-id"] == "mine 7"
    assert numbered(resume(http, "mine 7").text) == events
    # The newer one of two of the same name counts.
    newer = numbered(
        http.post(ROUTE, json=body(resumable=True), headers={"x-request-id": "mine 7"}).text
    )
    assert numbered(resume(http, "mine 7").text) == newer
    assert numbered(resume(http, name_of(events)).text) == events
    odd = whole(http, request_id="a/b c")
    assert numbered(resume(http, "cmpl-a/b c").text) == odd


@pytest.mark.parametrize("count", [1, 3])
def test_a_stream_goes_on_without_its_client_and_is_picked_up(gateway, http, count):
    seen = leave_after(http, gateway, count)
    name = name_of(seen)
    assert gateway.sessions.stats().open == 1
    with http.stream("GET", f"/v1/requests/{name}/stream?after={count - 1}") as response:
        lines = response.iter_lines()
        assert next(lines) == f"id: {count}"
        go_on(gateway)
        rest = [f"id: {count}", *lines]
    assert gateway.worker.aborted == []
    events = numbered(resume(http, name).text)
    assert numbered("\n".join([*rest, ""])) == events[count - 1 :]
    assert events[:count] == seen
    assert events[-1][1] == "[DONE]"
    assert len(events) == 7


def test_two_may_read_at_once(gateway, http):
    seen = leave_after(http, gateway, 2)
    url = f"/v1/requests/{name_of(seen)}/stream"
    with http.stream("GET", url) as one, http.stream("GET", f"{url}?after=1") as other:
        first, second = one.iter_lines(), other.iter_lines()
        assert (next(first), next(second)) == ("id: 1", "id: 2")
        go_on(gateway)
        first, second = ["id: 1", *first], ["id: 2", *second]
    assert numbered("\n".join([*first, ""]))[1:] == numbered("\n".join([*second, ""]))
    lines = http.get("/metrics").text.splitlines()
    assert any(line.startswith("tarragon_streams_resumed_total ") for line in lines)
    labels = 'tarragon_http_requests_total{path="/v1/requests",status="200"}'
    assert any(line.startswith(labels) for line in lines)


def test_a_death_and_a_reconnection(gateway, http):
    gateway.worker.deaths = [2, 2]
    with http.stream("POST", ROUTE, json=body(resumable=True)) as response:
        lines = response.iter_lines()
        seen = [next(lines) for _ in range(6)]
    name = json.loads(seen[1][6:])["id"]
    events = numbered(resume(http, name, 2).text)
    assert [number for number, _ in events] == [3, 4, 5, 6, 7]
    assert json.loads(events[-2][1])["choices"][0]["finish_reason"] == "length"
    assert [m.attempt for m in gateway.worker.submitted] == [1, 2, 3]


def test_nobody_comes_back(own):
    gateway, http = own(resume_s=0.5)
    seen = leave_after(http, gateway, 1)
    url = f"/v1/requests/{name_of(seen)}/stream"
    with http.stream("GET", url) as response:
        lines = response.iter_lines()
        assert next(lines) == "id: 1"
        time.sleep(0.8)  # somebody reads: it goes on
        assert gateway.sessions.stats().open == 1
    gateway.wait_until(lambda: gateway.sessions.stats().open == 0)
    assert gateway.worker.aborted == [gateway.worker.submitted[0].request]
    error = error_of(resume(http, name_of(seen)), 404, code="request_not_found")
    assert name_of(seen) in error["message"]


def test_finished_events_are_forgotten_in_time(own):
    _, http = own(resume_s=0.5)
    name = name_of(whole(http))
    ended = time.monotonic()
    while resume(http, name).status_code == 200:
        time.sleep(0.05)
    assert 0.4 < time.monotonic() - ended < 5
    error_of(resume(http, name), 404)


def test_without_time_to_come_back_it_is_as_if_not_resumable(own):
    gateway, http = own(resume_s=0)
    assert len(whole(http)) == 7
    leave_after(http, gateway, 1)
    gateway.wait_until(lambda: gateway.sessions.stats().open == 0)


def test_the_oldest_finished_stream_makes_room(own):
    gateway, http = own(max_requests=3)
    names = [name_of(whole(http)) for _ in range(2)]
    seen = leave_after(http, gateway, 1)
    gateway.worker.hold = None
    names.append(name_of(whole(http)))
    assert [resume(http, name).status_code for name in names] == [404, 200, 200]
    names.append(name_of(whole(http)))
    assert [resume(http, name).status_code for name in names] == [404, 404, 200, 200]
    assert name_of(seen) not in names
    assert gateway.sessions.stats().open == 1


@pytest.mark.parametrize("value", ["-1", "x", "1.5", "", "\u0663", "9" * 30])
def test_what_is_no_number(gateway, http, value):
    name = name_of(whole(http))
    error = error_of(resume(http, name, value), 400, param="after")
    assert error["message"].startswith("after: must be")
    if value.isascii() and value:
        error = error_of(resume(http, name, 0, **{"Last-Event-ID": value}), 400, param="after")
        assert "Last-Event-ID" in error["message"]


def test_positions():
    assert read_position({}, None) == 0
    assert read_position({"after": "3"}, "") == 3
    with pytest.raises(RequestError, match="only after is") as error:
        read_position({"afer": "3"}, None)
    assert error.value.param == "afer"


def test_an_unknown_stream(gateway, http):
    error_of(resume(http, "cmpl-nothing"), 404, code="request_not_found", param=None)
    name = json.loads(http.post(ROUTE, json=body()).text.split("\n\n")[0][6:])["id"]
    error_of(resume(http, name), 404)


def test_the_stream_of_another_key_does_not_exist(own):
    gateway, http = own(api_keys=["first", "second"])
    keys = [{"authorization": f"Bearer {key}"} for key in ("first", "second")]
    response = http.post(ROUTE, json=body(resumable=True, request_id="same"), headers=keys[0])
    events = numbered(response.text)
    error_of(resume(http, "cmpl-same"), 401)
    theirs = error_of(resume(http, "cmpl-same", **keys[1]), 404)
    nobodys = error_of(resume(http, "cmpl-none", **keys[1]), 404)
    assert theirs["message"].replace("same", "none") == nobodys["message"]
    error_of(resume(http, response.headers["x-request-id"], **keys[1]), 404)
    assert numbered(resume(http, "cmpl-same", **keys[0]).text) == events
    assert numbered(resume(http, response.headers["x-request-id"], **keys[0]).text) == events
    # The same name under another key is another stream.
    other = http.post(ROUTE, json=body(resumable=True, request_id="same"), headers=keys[1]).text
    assert numbered(resume(http, "cmpl-same", **keys[1]).text) == numbered(other)
    assert numbered(resume(http, "cmpl-same", **keys[0]).text) == events


def test_an_error_is_the_last_event_for_every_reader(own):
    gateway, http = own()
    seen = leave_after(http, gateway, 2)
    gateway.call(gateway.sessions.on_worker_draining, "aw0", 1)
    future = gateway.call(gateway.sessions.drain, 0)
    gateway.loop.call_soon_threadsafe(gateway.loop.create_task, future)
    gateway.wait_until(lambda: gateway.sessions.stats().open == 0)
    for after in (0, 1, 2):
        events = numbered(resume(http, name_of(seen), after).text)
        assert [number for number, _ in events] == [1, 2, 3][after:]
        error = json.loads(events[-1][1])["error"]
        assert "stopped before" in error["message"]
    assert resume(http, name_of(seen), 3).text == ""


def test_an_error_before_the_first_event_is_a_response_of_its_own(gateway, http):
    headers = {"x-request-id": "refused"}
    long = body(resumable=True, prompt=[5] * 200)
    error_of(http.post(ROUTE, json=long, headers=headers), 400, param="prompt")
    error_of(resume(http, "refused"), 404)
    with gateway.full():
        error_of(http.post(ROUTE, json=body(resumable=True), headers=headers), 429)
    gateway.worker.hold = 0

    def fail(message):
        who = "aw0", gateway.worker.incarnation
        gateway.sessions.on_failed(Failed(*who, [message.request], "ew0 is lost", again=False))

    gateway.worker.react = fail
    error_of(http.post(ROUTE, json=body(resumable=True), headers=headers), 503)
    error_of(resume(http, "refused"), 503)
