"""`tarragon generate` as a job: whatever happens to it, each request has one result, the right one.

The same 500 requests, undisturbed, then across a lost node, a preemption, and two time limits.
"""

from __future__ import annotations

import json
import random

import pytest
import yaml

from slurm.testcluster.cluster import wait
from tests.slurm.service import Run, config_for, tarragon
from tests.slurm.test_failures import batch_host

pytestmark = [pytest.mark.long, pytest.mark.vllm, pytest.mark.timeout(900)]

REQUESTS = 500
NEW_TOKENS = 35


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    rng = random.Random(5)
    path = tmp_path_factory.mktemp("batch") / "in.jsonl"
    lines = []
    for number in range(REQUESTS):
        body = {
            "prompt": [rng.randrange(3, 500) for _ in range(rng.randint(1, 60))],
            "max_tokens": rng.randint(10, 2 * NEW_TOKENS - 10),
            "ignore_eos": True,
            "temperature": 0.7 if number % 2 else 0,
            "seed": number,
            "return_token_ids": True,
        }
        lines.append(
            {"custom_id": f"r{number}", "method": "POST", "url": "/v1/completions", "body": body}
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class Batch:
    """A batch that was submitted."""

    def __init__(self, cluster, folder, config, requests):
        folder.mkdir(exist_ok=True)
        self.cluster = cluster
        self.results = folder / "out.jsonl"
        self.run = Run(cluster, folder / "run")
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        done = tarragon(
            cluster, "generate", str(file), "-i", str(requests), "-o", str(self.results),
            "--run-dir", str(self.run.run_dir),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    @property
    def lines(self):
        """Results so far, by all heads."""
        parts = (self.run.run_dir / "results").glob("*.jsonl")
        return sum(part.read_bytes().count(b"\n") for part in parts)

    def until(self, count, limit_s=250):
        """So many results are there."""
        wait(lambda: self.lines >= count, limit_s, f"{count} results; {self.run.why()[-2000:]}")

    def check_kv(self, handovers):
        """At each of them the KV of running requests was saved, and then used."""
        saved = self.run.told("kv saved")
        assert len(saved) >= handovers, saved
        assert all(line["requests"] and "problem" not in line for line in saved), saved
        names = {line["request"] for line in self.run.told("request resumed") if line["restored"]}
        assert len(names) >= sum(line["requests"] for line in saved) / 2, self.run.why()

    def answers(self, limit_s=400):
        """custom_id → tokens, once all jobs are over and every request has one result."""
        wait(lambda: not self.cluster.jobs(), limit_s, "the end of all jobs")
        lines = [json.loads(line) for line in self.results.read_text().splitlines()]
        ids = [line["custom_id"] for line in lines]
        assert len(ids) == len(set(ids)) == REQUESTS, self.run.why()
        assert {line["response"]["status_code"] for line in lines} == {200}
        return {
            line["custom_id"]: line["response"]["body"]["choices"][0]["token_ids"] for line in lines
        }


@pytest.fixture
def batch(cluster, tiny_models, requests, tmp_path):
    """Factory: cluster.slurm → a Batch that was submitted."""

    def submit(**slurm):
        # Requests are cut by the end of a job, and have KV to be saved.
        config = config_for(
            tiny_models("mixtral"),
            attention={"max_num_seqs": 4},
            checkpoint={"restore": "always"},
            cluster={"slurm": slurm, "drain_timeout_s": 0.3},
        )
        return Batch(cluster, tmp_path / "batch", config, requests)

    yield submit
    if left := cluster.jobs():
        cluster.cancel(*left)
    cluster.heal()


@pytest.fixture(scope="module")
def undisturbed(cluster, tiny_models, requests, tmp_path_factory):
    config = config_for(tiny_models("mixtral"), cluster={"slurm": {"standby_head": False}})
    found = Batch(cluster, tmp_path_factory.mktemp("undisturbed"), config, requests)
    answers = found.answers()
    report = (found.run.run_dir / "logs" / "head.log").read_text()
    assert "tokens/s" in report
    return answers


def test_a_node_is_lost(batch, cluster, undisturbed):
    found = batch(spares=2)
    found.until(20)
    host = batch_host(cluster, found.run.job)
    node = next(s.node for s in cluster.steps(found.run.job) if s.node != host)
    cluster.fail_node(node)
    assert found.answers() == undisturbed
    assert len(found.run.jobs) == 1


def test_two_time_limits(batch, cluster, undisturbed):
    found = batch(on_timelimit="chain", signal_s=60, time="10", standby_head=False)
    found.until(20)
    first = found.run.jobs[0]
    # What Slurm does when a limit is near, without the wait for it (test_limits has a real one).
    cluster.cancel("--signal=USR2", "--batch", first)
    wait(lambda: cluster.state(first) not in ("RUNNING", "COMPLETING"), 120, "its end")
    assert found.lines < REQUESTS, "the first limit came after the end"
    found.until(found.lines + 20)
    second = next(j for j in found.run.jobs if cluster.state(j) == "RUNNING")
    assert second != first
    cluster.cancel("--signal=USR2", "--batch", second)
    wait(lambda: cluster.state(second) not in ("RUNNING", "COMPLETING"), 120, "its end")
    assert found.lines < REQUESTS, "the second limit came after the end"
    assert found.answers() == undisturbed
    assert len(found.run.jobs) >= 3
    found.check_kv(2)


def test_a_preemption(batch, cluster, undisturbed):
    nodes = {"gpus_per_node": 2, "cpus_per_slot": 2, "partition": "low", "nodes": 6}
    found = batch(on_timelimit="chain", nodes=nodes, standby_head=False, warm_spares=False)
    found.until(20)
    first = found.run.jobs[0]
    urgent = cluster.submit("sleep 5", "-phigh", "-N6", "--exclusive", "--time=1")
    wait(lambda: cluster.state(urgent) in ("RUNNING", "COMPLETED"), 60, "the urgent job")
    assert found.lines < REQUESTS, "the preemption came after the end"
    assert found.answers() == undisturbed
    assert len(found.run.jobs) >= 2
    found.check_kv(1)
    assert cluster.state(first) not in ("RUNNING", "PENDING")
