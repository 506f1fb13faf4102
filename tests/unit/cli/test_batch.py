"""`tarragon generate` against a scripted gateway; the service around it is not started."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tarragon_hpc.cli import batch
from tarragon_hpc.cli.sabotage import Sabotage
from tarragon_hpc.cluster.head import RunInfo
from tarragon_hpc.errors import ClusterError, UserError

STATUS = {
    "workers": [
        {"id": "aw0", "role": "aw", "experts": [], "stats": {"tokens": 6.0}},
        {"id": "ew0", "role": "ew", "experts": [0, 1], "stats": {"rows": 48.0}},
    ]
}


class Service:
    """Takes the place of `run_service`: a real HTTP server that answers by the prompt."""

    def __init__(self):
        self.prompts = []
        self.configs = []
        self.interrupt_after = None
        self.status_of = {}

    async def __call__(self, config, *, run_dir, on_ready, stop, work):
        self.configs.append(config)
        server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        info = RunInfo("run-1", run_dir, f"http://127.0.0.1:{server.server_port}/v1")
        try:
            on_ready(info)
            task = asyncio.create_task(work(info))
            while not task.done():
                if self.interrupt_after is not None and len(self.prompts) >= self.interrupt_after:
                    task.cancel()
                await asyncio.sleep(0.005)
            if not task.cancelled():
                task.result()
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
        return 0

    def handler(service):  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                service.prompts.append(body["prompt"])
                status = service.status_of.get(body["prompt"], 200)
                usage = {"prompt_tokens": 1, "completion_tokens": 2}
                reply = {"usage": usage} if status == 200 else {"error": {"message": "no"}}
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        return Handler


@pytest.fixture
def service(monkeypatch):
    service = Service()
    monkeypatch.setattr(batch, "run_service", service)

    async def query_status(_run_dir):
        return STATUS

    monkeypatch.setattr(batch, "query_status", query_status)
    return service


@pytest.fixture
def files(tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("a", "b", "c")))
    return source, target


def run(files, *overrides, chaos=None):
    return batch.generate(None, ["model.path=m", *overrides], *map(str, files), None, chaos)


def ids(target):
    return sorted(json.loads(line)["custom_id"] for line in target.read_text().splitlines())


def test_all_requests_are_answered_and_summed_up(service, files, capsys):
    assert run(files, "gateway.port=1234", "gateway.api_keys=[k]") == 0
    assert ids(files[1]) == ["1", "2", "3"]
    (config,) = service.configs
    assert (config.gateway.host, config.gateway.port) == ("127.0.0.1", 0)
    out = capsys.readouterr().out
    assert "3 requests, 3 prompt tokens, 6 tokens in" in out
    assert "tokens/s" in out
    assert "48 rows" in out


def test_a_second_run_has_nothing_to_do(service, files, capsys):
    run(files)
    capsys.readouterr()
    assert run(files) == 0
    assert len(service.configs) == 1
    assert "3 of 3 requests are done already" in capsys.readouterr().out


def test_an_interrupted_run_is_continued(service, files, capsys):
    service.interrupt_after = 1
    assert run(files, "attention.max_num_seqs=1", "attention.workers=1") == 130
    assert "run again to continue" in capsys.readouterr().out
    service.interrupt_after = None
    assert run(files) == 0
    assert ids(files[1]) == ["1", "2", "3"]


def test_refused_requests_are_results_and_failed_ones_are_retried(service, files, capsys):
    service.status_of = {"a": 400, "b": 500}
    assert run(files) == 1
    assert "1 refused; 1 failed (run again to retry)" in capsys.readouterr().out
    service.status_of = {}
    assert run(files) == 0
    assert sorted(service.prompts) == ["a", "b", "b", "c"]
    assert ids(files[1]) == ["1", "2", "3"]


def test_a_service_that_fails_is_not_the_batchs_end(monkeypatch, files):
    async def fail(*_args, **_options):
        raise ClusterError("ew0 ended")

    monkeypatch.setattr(batch, "run_service", fail)
    with pytest.raises(ClusterError, match="ew0 ended"):
        run(files)
    assert files[1].read_text() == ""


def test_input_is_not_output(service, files):
    with pytest.raises(UserError, match="is also the input"):
        run((files[0], files[0]))
    assert service.configs == []


def test_a_fault_on_the_way_is_told_of_at_the_end(service, files, monkeypatch, capsys):
    struck = []

    async def strike(self, run_dir, say):
        await self._answers(1)
        struck.extend(self.faults)
        say("kill ew1.1")

    failure = {
        "worker": "ew1", "incarnation": 1, "time": 0.0, "fault": "kill", "how": "lost",
        "by": "aw0.1", "seconds": {"detected": 0.001, "answered": 0.004},
    }  # fmt: skip
    more = {"failures": [failure], "requests": {"longest_gap_s": 0.0125}}
    monkeypatch.setattr(Sabotage, "run", strike)
    monkeypatch.setitem(STATUS, "failures", more["failures"])
    monkeypatch.setitem(STATUS, "requests", more["requests"])
    assert run(files, chaos="kill:ew1") == 0
    assert struck == [("kill", "ew1")]
    out = capsys.readouterr().out
    assert "ew1.1 killed at 00:00:00Z: noticed after 1.0 ms (lost, by aw0.1), answered" in out
    assert out.endswith("longest gap between two tokens of an answer: 12.5 ms\n")


@pytest.mark.parametrize(
    ("chaos", "message"),
    [
        ("kill", "--chaos 'kill': expected FAULT:WORKER with a fault of kill, stop, slow"),
        ("cont:ew0", "--chaos 'cont:ew0': expected FAULT:WORKER"),
        ("kill:ew0,kill:aw9", "--chaos kill:aw9: 'aw9' is not one of aw0, aw1, ew0, ew1"),
        ("kill:ew7", "--chaos kill:ew7: 'ew7' is not one of aw0, aw1, ew0, ew1"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_before_anything_starts(service, files, chaos, message):
    with pytest.raises(UserError, match=message):
        run(files, chaos=chaos)
    assert service.configs == []
    assert not files[1].exists()
