"""The head's node fails, and a standby on another node goes on; `attach` from the login node."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from slurm.testcluster.cluster import wait
from tarragon_hpc.cluster.rendezvous import read_head
from tests.e2e.crowd import Crowd, is_whole
from tests.slurm.service import COMMAND, config_for, serving, tarragon
from tests.slurm.streams import Resumable
from tests.slurm.test_failures import batch_host

pytestmark = [pytest.mark.long, pytest.mark.vllm, pytest.mark.timeout(600)]

LENGTHS = [1, 90, 7, 30, 55, 12]
NEW_TOKENS = 120


@pytest.fixture
def run(cluster, tiny_models, tmp_path):
    config = config_for(
        tiny_models("mixtral"),
        cluster={"head_lease_s": 60, "slurm": {"spares": 2, "warm_spares": False}},
        gateway={"resume_s": 120},
    )
    # Its batch process dies with its node; somebody has to end the job then.
    with serving(cluster, config, tmp_path, state=None) as run:
        yield run
    cluster.heal()


def test_the_heads_node_fails_and_a_login_node_takes_over(run, cluster, tiny_models):
    vocab = json.loads((tiny_models("mixtral") / "config.json").read_text())["vocab_size"]
    people = Crowd(run, vocab, lengths=LENGTHS, new_tokens=NEW_TOKENS)
    wait(lambda: run.status()["standbys"], 60, "a standby head")
    refused = tarragon(cluster, "attach", str(run.run_dir))
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "is there; --force takes the run away from it" in refused.stderr
    first = read_head(run.run_dir)
    host = batch_host(cluster, run.job)
    elsewhere = {w["id"] for w in people.workers() if cluster.where(w["step"]) != host}
    assert elsewhere
    clients = [Resumable(run, prompt, NEW_TOKENS, 150) for prompt in people.prompts]
    for client in clients:
        client.start()
    wait(lambda: all(c.tokens for c in clients), 60, "streams", every_s=0.02)
    cluster.fail_node(host)
    for client in clients:
        client.join()
    assert {c.problem for c in clients} == {None}
    assert [c.tokens for c in clients] == people.expected
    wait(lambda: read_head(run.run_dir).incarnation > 1, 90, "the standby's turn")
    second = read_head(run.run_dir)
    assert (second.incarnation, second.pid != first.pid) == (2, True)
    people.until(is_whole, 150)
    stayed = {w["id"] for w in people.workers() if w["incarnation"] == 1}
    assert stayed == elsewhere, "not re-adopted, or not replaced"
    attached = subprocess.Popen(
        [*COMMAND, "attach", str(run.run_dir), "--force"],
        env=cluster.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with attached:
        assert attached.stdout.readline() == (
            f"attached to {run.run_dir.name} as head 3; Ctrl-C leaves it to the next head\n"
        )
        assert attached.stdout.readline() == f"ready: {run.endpoint}\n"
        people.whole()
        wait(lambda: run.status()["standbys"], 60, "a standby head for the third")
        attached.send_signal(signal.SIGINT)
        assert attached.wait(20) == 0
    wait(lambda: read_head(run.run_dir).incarnation > 3, 60, "the next head")
    people.whole()
    cluster.start_slurmd(host)
