"""Over two heads clients read what one would have told: the first one is killed and vLLM is not, or
both end for the next job.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tarragon_hpc.cluster.rendezvous import create_run
from tarragon_hpc.config import load_config
from tests.failover.test_head_death import Client, Run
from tests.timeline import told

HEAD = Path(__file__).parents[1] / "failover" / "detached_head.py"
TOKENS = 160
COMMON = {"max_tokens": TOKENS, "ignore_eos": True, "return_token_ids": True}
STREAMS = {
    "greedy": {"prompt": [5, 6, 7], "temperature": 0, "logprobs": 2},
    "seeded": {"prompt": [[8, 9], [10]], "n": 2, "seed": 3},
    "unseeded": {"prompt": [11], "n": 2, "frequency_penalty": 0.5},
}


class Vllm(Run):
    """With real workers, which outlive their head as steps of Slurm do."""

    def start(self, *more, fault=""):
        with (self.run_dir / "logs" / "heads.log").open("ab") as output:
            command = [sys.executable, str(HEAD), str(self.run_dir), "-", *more]
            self.processes.append(
                subprocess.Popen(command, stdout=output, stderr=output, text=True)
            )
        return self.processes[-1]

    def hand_over(self):
        """As near the time limit."""
        self.processes[-1].send_signal(signal.SIGUSR2)
        assert self.processes[-1].wait(60) == 0


@pytest.fixture
def run(tiny_models, tmp_path):
    config = load_config(
        {
            "model": {"path": str(tiny_models("mixtral")), "served_name": "tiny"},
            "attention": {"workers": 1, "threads": 1, "kv_cache": "64MiB"},
            "experts": {"workers": 2, "threads": 1},
            "checkpoint": {"stores": 1},
            "transport": {"interface": "lo", "spin_us": 0},
            "gateway": {"port": 0, "resume_s": 120},
            "cluster": {
                "backend": "slurm",
                "head_lease_s": 120,
                "start_timeout_s": 180,
                "drain_timeout_s": 0.2,
            },
        }
    )
    one = Vllm(create_run(config, tmp_path / "run"))
    yield one
    one.close()


def pids(workers):
    return {w["id"]: w["pid"] for w in workers}


@pytest.mark.parametrize("end", ["killed", "handed over"])
def test_streams_over_two_heads(run, end):
    async def scenario() -> None:
        endpoint = await run.next()
        before = (await asyncio.to_thread(run.status))["workers"]
        clients = [
            Client(run, name, "completions", COMMON | body) for name, body in STREAMS.items()
        ]
        reading = [asyncio.create_task(client.read()) for client in clients]
        async with asyncio.timeout(100):
            while any(c.events < 30 for c in clients):
                await asyncio.sleep(0.01)
        await asyncio.to_thread(run.kill if end == "killed" else run.hand_over)
        assert not any(task.done() for task in reading)
        endpoint = await run.next()
        await asyncio.gather(*reading)
        after = await asyncio.to_thread(run.status)
        assert (pids(after["workers"]) == pids(before)) == (end == "killed"), "not re-adopted"
        async with httpx.AsyncClient(timeout=120) as http:
            for client in clients:
                assert client.broken
                numbers = [number for number, _ in client.parsed()]
                assert numbers == list(range(1, len(numbers) + 1))
                assert {len(tokens) for tokens in client.tokens().values()} == {TOKENS}
                again = await http.get(f"{endpoint}/requests/{client.name}/stream")
                assert again.text == client.text
            for name, client in zip(STREAMS, clients, strict=True):
                if name != "unseeded":
                    body = COMMON | STREAMS[name]
                    whole = (await http.post(f"{endpoint}/completions", json=body)).json()
                    got = {c["index"]: c["token_ids"] for c in whole["choices"]}
                    assert client.tokens() == got
        requests = after["requests"]
        assert requests["restored"] + requests["recomputed"] == 7
        assert requests["restored"] > 0, "no KV came from the store"
        if end == "handed over":
            (saved,) = told(run.run_dir, "kv saved")
            assert (saved["worker"], saved["requests"]) == ("cs0", 7)
            assert not list((run.run_dir / "kv").iterdir()), "it was not read"
            resumed = told(run.run_dir, "request resumed")
            assert sum(line["restored"] for line in resumed) >= 0.8 * saved["tokens"]

    asyncio.run(scenario())
