"""`tarragon generate` with real vLLM: killed in the middle, continued, each answered once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

REQUESTS = 16


@pytest.fixture
def requests(tmp_path):
    path = tmp_path / "in.jsonl"
    lines = []
    for i in range(REQUESTS):
        common = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
        prompt = f"The {i}th thing that people say about water"
        if i % 3 == 0:
            body = {"messages": [{"role": "user", "content": prompt}], **common}
            url = "/v1/chat/completions"
            lines.append({"custom_id": f"chat-{i}", "method": "POST", "url": url, "body": body})
        elif i == 1:
            lines.append({"prompt": prompt, "max_tokens": -5})
        else:
            lines.append({"prompt": prompt, **common})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def start(model, requests, results, run_dir):
    command = [sys.executable, "-m", "tarragon_hpc.cli", "generate"]
    command += ["-i", str(requests), "-o", str(results), "--run-dir", str(run_dir)]
    for override in (
        f"model.path={model}", "attention.workers=1", "experts.workers=1",
        "attention.max_num_seqs=2", "attention.kv_cache=64MiB",
    ):  # fmt: skip
        command += ["--set", override]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def belonging_to(run_dir):
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        if str(run_dir) in (process.info["cmdline"] or []):
            found.append(process.info["cmdline"])
    return found


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_killed_and_continued(tiny_models, requests, tmp_path):
    model, results = tiny_models("mixtral"), tmp_path / "out.jsonl"

    def lines():
        return results.read_bytes().count(b"\n") if results.exists() else 0

    first = start(model, requests, results, tmp_path / "run-1")
    try:
        wait_for(lambda: lines() >= 3 or first.poll() is not None, 180)
        assert first.poll() is None, first.stdout.read()
        assert len(belonging_to(tmp_path / "run-1")) == 5  # head, AW, EW, a fork server for each
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
    done = lines()
    assert done < REQUESTS
    # The workers die with their head, and a line that was being written may be cut.
    wait_for(lambda: not belonging_to(tmp_path / "run-1"), 20)
    with results.open("ab") as file:
        file.write(b'{"id":"batch_req_12')

    second = start(model, requests, results, tmp_path / "run-2")
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 0, output
    assert f"{done} of {REQUESTS} requests are done already" in output
    assert "tokens/s" in output
    answers = [json.loads(line) for line in results.read_text().splitlines()]
    expected = [f"chat-{i}" if i % 3 == 0 else f"{i + 1}" for i in range(REQUESTS)]
    assert sorted(a["custom_id"] for a in answers) == sorted(expected)
    for answer in answers:
        response = answer["response"]
        if answer["custom_id"] == "2":
            assert response["status_code"] == 400
            assert response["body"]["error"]["param"] == "max_tokens"
        else:
            assert response["status_code"] == 200
            assert response["body"]["usage"]["completion_tokens"] == 60
    assert not belonging_to(tmp_path / "run-2")
