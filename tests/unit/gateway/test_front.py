"""Around the generating routes: refusals, limits, keys, metrics, clients that leave."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket

import httpx
import pytest

from tarragon_hpc.errors import ConfigError, ModelError
from tarragon_hpc.gateway.front import KeyRing
from tarragon_hpc.gateway.output import SequenceOutput
from tarragon_hpc.gateway.server import listen

TALK = {"messages": [{"role": "user", "content": "hi"}]}
ROUTES = ("/v1/completions", "/v1/chat/completions")


def error_of(response, status, **fields):
    """The error object of a refused request."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    for name, value in fields.items():
        assert body["error"][name] == value
    return body["error"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b'{"prompt": NaN}', b"\xff\xfe", b'"\\ud800"', b"[" * 100_000,
     b'{"max_tokens": 1e999, "prompt": "x"}', b"5", b"[]", b"null", b'{"prompt": "x"} trailing'],
)  # fmt: skip
@pytest.mark.parametrize("route", ROUTES)
def test_bodies_that_are_no_request(http, route, body):
    response = http.post(route, content=body, headers={"content-type": "application/json"})
    error_of(response, 400, type="invalid_request_error", param=None)


@pytest.mark.parametrize("depth", [100, 500, *range(900, 1000, 20), 2000])
def test_nesting_is_refused_at_every_depth(http, depth):
    """Python's limit on recursion is met in a different place at each."""
    for value in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        for field in ("prompt", "stop", "tools", "nonsense"):
            body = f'{{"prompt": "x", "{field}": {value}}}'
            response = http.post(ROUTES[0], content=body)
            assert len(error_of(response, 400)["message"]) < 500
        body = f'{{"messages": [{{"role": "user", "content": {value}}}]}}'
        error_of(http.post(ROUTES[1], content=body), 400)


def test_numbers_of_any_length_are_refused(http):
    for digits in (20, 400, 4299, 4301, 50_000):
        number = "9" * digits
        for field in ("n", "max_tokens", "min_tokens", "seed", "top_k", "temperature", "prompt"):
            body = f'{{"prompt": [5], "{field}": {number}}}'
            assert len(error_of(http.post(ROUTES[0], content=body), 400)["message"]) < 500
        for body in (
            f'{{"prompt": [{number}]}}',
            f'{{"prompt": [5], "stop_token_ids": [{number}]}}',
        ):
            error = error_of(http.post(ROUTES[0], content=body), 400)
            assert len(error["message"]) < 500


def test_a_form_is_not_json(http):
    error = error_of(http.post(ROUTES[0], data={"prompt": "x"}), 400)
    assert "content-type: must be application/json" in error["message"]
    without = http.post(ROUTES[0], content=b'{"prompt": "x", "max_tokens": 1}')
    assert without.status_code == 200


@pytest.mark.parametrize(
    ("route", "body", "status", "param"),
    [
        ("/v1/completions", {"prompt": "x", "model": "other"}, 404, "model"),
        ("/v1/chat/completions", TALK | {"model": "other"}, 404, "model"),
        ("/v1/completions", {"prompt": [512]}, 400, "prompt"),
        ("/v1/completions", {"prompt": [-1]}, 400, "prompt"),
        ("/v1/completions", {"prompt": ""}, 400, "prompt"),
        ("/v1/completions", {"prompt": [5] * 128}, 400, "prompt"),
        ("/v1/completions", {"prompt": "a b c " * 200}, 400, "prompt"),
        ("/v1/completions", {"prompt": "\u20ac" * 20_000}, 400, "prompt"),
        ("/v1/chat/completions",
         {"messages": [{"role": "user", "content": "a b c " * 200}]}, 400, "messages"),
        ("/v1/completions", {"prompt": "x", "max_tokens": -1}, 400, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 10**9}, 400, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "n": 17}, 400, "n"),
        ("/v1/completions", {"prompt": ["x"] * 9, "n": 2}, 400, "n"),
        ("/v1/completions", {"prompt": "x", "n": 10**9}, 400, "n"),
        ("/v1/completions", {"prompt": "x", "n": 10**100}, 400, "n"),
        ("/v1/completions", {"prompt": "x", "logit_bias": {"5": 1}}, 400, "logit_bias"),
        ("/v1/completions", {"prompt": "x", "nonsense": 1}, 400, "nonsense"),
        ("/v1/chat/completions", TALK | {"tools": [{}]}, 400, "tools"),
        ("/v1/chat/completions",
         TALK | {"chat_template_kwargs": {"tools": 1}}, 400, "chat_template_kwargs"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_mistakes_are_answered_with_the_name_of_the_field(http, route, body, status, param, stream):
    error = error_of(http.post(route, json=body | {"stream": stream}), status, param=param)
    assert param in error["message"]


def test_a_body_over_the_limit(http, gateway):
    error_of(http.post(ROUTES[0], json={"prompt": "x" * 300_000}), 413, code="body_too_large")

    def pieces():
        while True:
            yield b"x" * 65_536

    try:
        response = http.post(
            ROUTES[0], content=pieces(), headers={"content-type": "application/json"}
        )
    except httpx.WriteError:
        # The server has answered and closed before the client was done; that is its right.
        return
    error_of(response, 413)


def test_other_routes(http, model_dir):
    error_of(http.get("/nothing"), 404)
    error_of(http.get(ROUTES[0]), 405)
    error_of(http.get("/v1/models/other"), 404, param="model", code="model_not_found")
    assert http.get("/version").json() == {"version": "0.1.0"}
    assert http.get("/status").json() == {"state": "serving", "epoch": 3}
    (model,) = http.get("/v1/models").json()["data"]
    assert http.get(f"/v1/models/{model_dir}").json() == model
    assert model.pop("created") > 0
    assert model == {
        "id": "tiny", "object": "model", "owned_by": "tarragon", "root": str(model_dir),
        "parent": None, "max_model_len": 128,
    }  # fmt: skip


def test_health_is_whether_requests_are_admitted(http, gateway):
    assert http.get("/health").status_code == 200
    gateway.call(gateway.sessions.set_serving, False, "ew1 is lost")
    try:
        response = http.get("/health")
        assert response.status_code == 503
        assert response.json() == {"status": "unavailable", "reason": "ew1 is lost"}
        response = http.post(ROUTES[0], json={"prompt": "x"})
        error_of(response, 503, message="ew1 is lost", type="service_unavailable_error")
        assert response.headers["retry-after"]
    finally:
        gateway.call(gateway.sessions.set_serving, True, "")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue(http, gateway, route, stream):
    body = (TALK if "chat" in route else {"prompt": "x"}) | {"stream": stream}
    with gateway.full():
        response = http.post(route, json=body)
        error_of(response, 429, type="rate_limit_error", code="queue_full")
        assert response.headers["retry-after"] == "1"
    assert http.post(route, json=body).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_takes_its_sequences_with_it(gateway, stream):
    gateway.worker.hold = 3
    body = json.dumps({"prompt": "x", "n": 2, "stream": stream, "max_tokens": 50}).encode()
    with socket.create_connection(gateway.url.removeprefix("http://").split(":")) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        gateway.wait_until(lambda: len(gateway.worker.submitted) == 2)
        if stream:
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
        assert gateway.sessions.stats().open == 2
    gateway.wait_until(lambda: gateway.sessions.stats().open == 0)
    assert sorted(gateway.worker.aborted) == sorted(m.request for m in gateway.worker.submitted)


def test_garbage_on_the_port_changes_nothing(http, gateway):
    for garbage in (
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"POST / HTTP/9\r\n" + b"a" * 100_000,
        b"\x16\x03",
    ):
        with socket.create_connection(gateway.url.removeprefix("http://").split(":")) as client:
            client.sendall(garbage)
    assert http.get("/health").status_code == 200


def test_request_ids_are_kept_and_unfit_ones_replaced(http, gateway, caplog):
    with caplog.at_level(logging.INFO, "tarragon_hpc.gateway"):
        kept = http.post(ROUTES[0], json={"prompt": "x"}, headers={"x-request-id": "my-id 1"})
        line = "request my-id 1: POST /v1/completions 200"
        gateway.wait_until(lambda: line in caplog.text)
    assert kept.headers["x-request-id"] == "my-id 1"
    long = http.get("/version", headers={"x-request-id": "x" * 200})
    assert len(long.headers["x-request-id"]) == 32
    odd = http.get("/version", headers={"x-request-id": b"\xe9"})
    assert len(odd.headers["x-request-id"]) == 32


def test_a_bug_is_a_500_without_its_story(http, gateway, caplog, monkeypatch):
    monkeypatch.setattr(gateway.sessions, "open", None)
    error = error_of(http.post(ROUTES[0], json={"prompt": "x"}), 500, type="server_error")
    assert "NoneType" not in error["message"]
    assert "NoneType" in caplog.text


def test_a_bug_in_the_middle_of_a_stream_is_its_last_event(http, gateway, caplog, monkeypatch):
    count = itertools.count()

    def push(output, delta):
        if next(count) == 2:
            raise ZeroDivisionError("secret")
        return original(output, delta)

    original = SequenceOutput.push
    monkeypatch.setattr(SequenceOutput, "push", push)
    text = http.post(ROUTES[0], json={"prompt": "x", "stream": True}).text
    *chunks, last = [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n")[:-1]]
    assert len(chunks) == 2
    assert last["error"]["type"] == "server_error"
    assert "secret" not in text
    assert "secret" in caplog.text


def test_metrics(http, gateway):
    def value(name, **labels):
        return gateway.registry.get_sample_value(name, labels) or 0

    def answered():
        labels = {"path": "/v1/completions", "status": "200"}
        return value("tarragon_http_requests_total", **labels)

    before = answered(), value("tarragon_generation_tokens_total")
    first = value("tarragon_time_to_first_token_seconds_count")
    http.post(ROUTES[0], json={"prompt": "x", "max_tokens": 5, "n": 2, "ignore_eos": True})
    http.get("/not/a/path/7")
    gateway.wait_until(lambda: answered() == before[0] + 1)
    assert value("tarragon_generation_tokens_total") == before[1] + 10
    assert value("tarragon_time_to_first_token_seconds_count") == first + 2
    lines = http.get("/metrics").text.splitlines()
    assert "tarragon_serving 1.0" in lines
    assert "tarragon_open_sequences 0.0" in lines
    assert 'tarragon_running_sequences{worker="aw0"} 0.0' in lines
    for name in (
        'tarragon_http_requests_total{path="other",status="404"}',
        'tarragon_sequences_total{end="finished"}',
    ):
        assert any(line.startswith(f"{name} ") for line in lines)


def test_draining_finishes_what_runs(gateway, start, model_dir):
    with start(model_dir) as own, httpx.Client(base_url=own.url, timeout=10) as http:
        own.worker.hold = 1
        body = {"prompt": "x", "stream": True, "max_tokens": 2}
        with http.stream("POST", ROUTES[0], json=body) as response:
            lines = response.iter_lines()
            assert "choices" in next(lines)
            drained = asyncio.run_coroutine_threadsafe(own.sessions.drain(10), own.loop)
            own.wait_until(lambda: own.sessions.unavailable() == "the service is stopping")
            error_of(http.post(ROUTES[0], json={"prompt": "x"}), 503)
            own.worker.hold = None
            own.call(own.worker._step, own.worker.submitted[0], 1)
            assert "[DONE]" in "".join(lines)
        assert drained.result(5) == 0


def test_keys(start, model_dir):
    with (
        start(model_dir, api_keys=["first", "second"]) as own,
        httpx.Client(base_url=own.url) as http,
    ):
        for path in ("/health", "/metrics"):
            assert http.get(path).status_code == 200
        for path in ("/v1/models", "/version", "/status", "/nothing"):
            error_of(http.get(path), 401, code="invalid_api_key", type="authentication_error")
        for value in ("Bearer wrong", "first", "Basic first", "Bearer", ""):
            response = http.post(ROUTES[0], json={"prompt": "x"}, headers={"authorization": value})
            error_of(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
        assert own.worker.submitted == []
        for key in ("first", "second"):
            for scheme in ("Bearer", "bearer"):
                headers = {"authorization": f"{scheme} {key}"}
                assert http.get("/v1/models", headers=headers).status_code == 200


def test_an_empty_key_is_refused(start, model_dir):
    with pytest.raises(ConfigError, match=r"^gateway.api_keys"):
        start(model_dir, api_keys=["good", ""])


def test_a_key_ring_without_keys_is_open():
    assert KeyRing(None).admits(None)
    assert not KeyRing(["k"]).admits(None)
    assert not KeyRing(["k"]).admits("Bearer \udce9")
    assert KeyRing(["schl\u00fcssel"]).admits("Bearer schl\u00fcssel")


def test_a_checkpoint_without_tokenizer_serves_token_ids(start, tmp_path):
    with start(tmp_path) as own, httpx.Client(base_url=own.url) as http:
        answer = http.post(
            ROUTES[0], json={"prompt": [5, 6], "return_token_ids": True, "logprobs": 0}
        ).json()
        (choice,) = answer["choices"]
        assert choice["text"] == ""
        assert len(choice["token_ids"]) == 16
        assert choice["logprobs"]["tokens"][0] == f"token_id:{choice['token_ids'][0]}"
        error = error_of(http.post(ROUTES[0], json={"prompt": "x"}), 400, param="prompt")
        assert "tokenizer.json" in error["message"]
        error_of(http.post(ROUTES[0], json={"prompt": [5], "stop": "x"}), 400, param="stop")
        error = error_of(http.post(ROUTES[1], json=TALK), 400, param="messages")
        assert "no chat template" in error["message"]


def test_a_broken_tokenizer_is_an_error_at_the_start(start, tmp_path):
    (tmp_path / "tokenizer.json").write_text("nonsense")
    running = start(tmp_path)
    with pytest.raises(ModelError, match=r"tokenizer.json: not a tokenizer"):
        asyncio.run(running._serve())


def test_a_socket_says_that_it_is_tcp_and_names_the_key_that_is_wrong():
    with listen("127.0.0.1", 0) as sock:
        assert sock.proto == socket.IPPROTO_TCP
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^gateway.port: {port} is in use on 127.0.0.1"):
            listen("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"^gateway.host: cannot listen on 192.0.2.1"):
        listen("192.0.2.1", 0)
    with pytest.raises(ConfigError, match=r"^gateway.host: 'no such host'"):
        listen("no such host", 0)
