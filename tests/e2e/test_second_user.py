"""A second Unix user on the node reads no prompt, joins no run, stops no worker.

Every attempt is made, by a process of that user, while a request runs. The same attempts made by
the service's own user show that they would get somewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import httpx
import pytest

from tarragon_hpc.cluster.rendezvous import (
    CONFIG,
    JOURNAL,
    LOGS,
    SECRET,
    TIMELINE,
    read_head,
    run_secret,
)
from tarragon_hpc.orchestrator.events import WorkerRegistered
from tarragon_hpc.orchestrator.journal import read_journal
from tarragon_hpc.wire.codec import encode
from tarragon_hpc.wire.to_head import Register, StopRun
from tests.e2e.crowd import start

HEAD = "head.1.json"
OPT_OUT = "TARRAGON_NO_SECOND_USER"
SCRIPT = Path(__file__).with_name("stranger.py")
KEY = "key-a1b2c3d4e5"
MARK = "xyzzyplugh"  # in the prompt

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.environ.get(OPT_OUT) == "1", reason=f"{OPT_OUT}=1"),
]


@pytest.fixture(scope="module")
def stranger():
    """A user id that nobody has."""
    if os.geteuid() != 0:
        pytest.fail(f"only root can act as a second user; {OPT_OUT}=1 leaves these tests out")
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    return next(uid for uid in random.sample(range(20_000, 60_000), 1000) if uid not in taken)


@pytest.fixture(scope="module")
def service(tiny_models):
    """In a place that everybody may enter: what is private is so by itself."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        open_to_all = Path(place) / "service"
        open_to_all.mkdir()
        open_to_all.chmod(0o755)
        context, _ = start(
            tiny_models,
            open_to_all,
            "mixtral",
            attention={"workers": 1},
            experts={"workers": 1},
            checkpoint={"stores": 1, "memory": "64MiB"},
            gateway={"port": 0, "api_keys": [KEY]},
        )
        mask = os.umask(0o077)  # the user's own file, which has the key
        try:
            running = context.__enter__()
        finally:
            os.umask(mask)
        with contextlib.ExitStack() as stack:
            stack.push(context)
            yield running


def attempts(uid, tries):
    """How each of them ended, when this user made it."""
    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), str(uid)],
        input=json.dumps([["user"], *tries]),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    who, *results = json.loads(done.stdout)
    assert who == str(uid)
    return [(tried, result) for tried, result in zip(tries, results, strict=True)]


@pytest.fixture(scope="module")
def processes(service):
    """pids of the head and of everything that it has started."""

    def below(pid):
        found = [pid]
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += below(int(child))
        return found

    found = below(service.process.pid)
    assert len(found) >= 4
    return found


def ask(service, tokens=8):
    body = {
        "prompt": f"the word is {MARK}",
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    headers = {"authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{service.endpoint}/completions", json=body, headers=headers, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"]


@pytest.fixture(scope="module", autouse=True)
def undisturbed(service):
    """A request that runs all the time, answered as before, by the same processes."""
    before, workers = ask(service), [(w["id"], w["pid"]) for w in service.status()["workers"]]
    over, answers = threading.Event(), []

    def keep_asking():
        while not over.is_set():
            answers.append(ask(service))
            over.wait(0.2)  # the tests need the machine, too

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert answers
    assert all(answer == before for answer in answers)
    status = service.status()
    assert status["state"] == "serving"
    assert [(w["id"], w["pid"]) for w in status["workers"]] == workers


def files(service):
    run_dir, runtime_dir = service.run_dir, read_head(service.run_dir).runtime_dir
    logs = sorted(str(path) for path in (run_dir / LOGS).iterdir())
    assert len(logs) >= 3
    names = (SECRET, CONFIG, HEAD, JOURNAL, TIMELINE)
    return [
        *(["entries", str(path)] for path in (run_dir, run_dir / LOGS, runtime_dir)),
        *(["read", path] for path in [*(str(run_dir / name) for name in names), *logs]),
    ]


def test_no_file_of_the_run_can_be_read(service, stranger):
    tries = files(service)
    assert {result for _, result in attempts(stranger, tries)} == {"EACCES"}
    assert not {"EACCES", "ENOENT"} & {result for _, result in attempts(0, tries)}
    planted = [["write", str(service.run_dir / name)] for name in ("x", SECRET, HEAD)]
    planted += [["write", f"{read_head(service.run_dir).runtime_dir}/ew0.9.sock"]]
    assert {result for _, result in attempts(stranger, planted)} == {"EACCES"}


def test_no_process_can_be_looked_into(processes, stranger):
    looks = [
        *(["read", f"/proc/{pid}/{name}"] for pid in processes for name in ("environ", "maps")),
        *(["entries", f"/proc/{pid}/fd"] for pid in processes),
        *([what, pid] for pid in processes for what in ("memory", "memory_call")),
        *([what, pid] for pid in processes for what in ("trace", "descriptor")),
    ]
    for tried, result in attempts(stranger, looks):
        assert result in ("EACCES", "EPERM"), tried
    # Its own user can; tracing would stop it.
    mine = [look for look in looks if look[0] not in ("trace", "memory_call")]
    for tried, result in attempts(0, mine):
        assert result not in ("EACCES", "EPERM"), tried


def test_what_everybody_can_see_tells_nothing(service, processes, stranger):
    secret = run_secret(service.run_dir).hex()
    public = [
        ["read", f"/proc/{pid}/{name}"]
        for pid in processes
        for name in ("cmdline", "comm", "status")
    ]
    shm = attempts(stranger, [["entries", "/dev/shm"]])[0][1]
    assert "tarragon-" not in shm
    seen = attempts(stranger, public)
    assert any("tarragon_hpc" in result for _, result in seen)
    # And neither do the environments, which only its own user can see.
    seen += attempts(0, [["read", f"/proc/{pid}/environ"] for pid in processes])
    for tried, result in seen:
        for word in (secret, KEY, MARK):
            assert word not in result, tried


def test_prompts_and_secrets_are_in_no_file_of_the_run(service):
    """Not even in those that only its own user can read, but where they belong."""
    secret = run_secret(service.run_dir).hex()
    for path in service.run_dir.rglob("*"):
        if path.is_file():
            text = path.read_text(errors="replace")
            assert MARK not in text, path
            assert (secret in text) == (path.name == SECRET), path
            assert (KEY in text) == (path.name == CONFIG), path
            assert path.stat().st_mode & 0o077 == 0, path
    serve_log = (service.run_dir.parent / "serve.log").read_text()
    assert not [word for word in (MARK, KEY, secret) if word in serve_log]


def test_nobody_joins_the_run(service, stranger):
    record = read_head(service.run_dir)
    door = [record.control_host, record.control_port]
    addresses = [
        entry.event.address
        for entry in read_journal(service.run_dir / JOURNAL)
        if isinstance(entry.event, WorkerRegistered)
    ]
    guesses = ["", "00" * 32, record.run.encode().hex(), os.urandom(32).hex()]
    orders = (encode(StopRun(0.0)) + encode(Register("aw0", 2, 1, "h", {}))).hex()
    tries = [["challenge", *door, "control", guess, orders] for guess in guesses]
    tries += [["garbage", *door, orders], ["garbage", *door, b"GET / HTTP/1.1\r\n\r\n".hex()]]
    sockets = []
    for address in addresses:
        for key, value in address.items():
            prefix, _, field = key.rpartition(".")
            if field == "path":
                sockets.append(["unix", value])
            if field == "port":
                data = [address[f"{prefix}.host" if prefix else "host"], int(value)]
                tries += [["challenge", *data, "data", guess, "00" * 64] for guess in guesses]
    assert {result for _, result in attempts(stranger, tries)} == {"closed"}
    assert sockets
    assert {result for _, result in attempts(stranger, sockets)} == {"EACCES"}
    assert {result for _, result in attempts(0, sockets)} == {"connected"}


def test_no_process_can_be_stopped_or_slowed(processes, stranger):
    tries = [
        *(["kill", pid, n] for pid in processes for n in (0, signal.SIGSTOP, signal.SIGKILL)),
        *([how, pid] for pid in processes for how in ("kill_by_fd", "slow", "strangle")),
    ]
    for tried, result in attempts(stranger, tries):
        assert result == "EPERM", tried
    assert {result for _, result in attempts(0, [["kill", pid, 0] for pid in processes])} == {
        "sent"
    }


def test_the_gateway_wants_a_key(service, stranger):
    base = service.endpoint
    body = json.dumps({"prompt": "hi", "max_tokens": 1})
    asked = [
        (f"{base}/completions", body),
        (f"{base}/models", None),
        (f"{base}/requests/cmpl-1/stream", None),
        (f"{base.removesuffix('/v1')}/status", None),
    ]
    tries = [
        ["http", url, key, body] for url, body in asked for key in (None, "", "guess", KEY[:-1])
    ]
    assert {result for _, result in attempts(stranger, tries)} == {"401"}
    (_, known), (_, metrics) = attempts(
        stranger,
        [["http", *asked[0][:1], KEY, body], ["http", base.replace("v1", "metrics"), None, None]],
    )
    assert known.startswith("200 ")
    assert metrics.startswith("200 ")
    assert MARK not in metrics
