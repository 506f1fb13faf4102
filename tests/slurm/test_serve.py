"""`tarragon serve` on Slurm in its three topologies: the tokens are those of plain vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.crowd import Crowd
from tests.slurm.service import config_for, serving

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(500)]

NEW_TOKENS = 40
NODES = {"gpus_per_node": 2, "cpus_per_slot": 2}
TOPOLOGIES = {
    "single": {"nodes": NODES},
    "hetjob": {
        "head_nodes": {"partition": "cpu", "nodes": 2, "cpus_per_slot": 2},
        "aw_nodes": {**NODES, "nodes": 2},
        "ew_nodes": {**NODES, "nodes": 2},
    },
    "pool": {"head_nodes": {"partition": "cpu", "cpus_per_slot": 2}, "nodes": NODES},
}


@pytest.fixture(scope="module")
def plain(tiny_models, tmp_path_factory):
    """What plain vLLM answers to the prompts of a crowd."""
    folder = tmp_path_factory.mktemp("oracle")

    def answers(prompts):
        asked, given = folder / "prompts.json", folder / "answers.json"
        if not given.exists():
            asked.write_text(json.dumps(prompts))
            oracle = Path(__file__).parents[1] / "e2e" / "oracle.py"
            command = [sys.executable, oracle, "vllm", tiny_models("mixtral"), asked, given]
            done = subprocess.run(
                [*map(str, command), str(NEW_TOKENS)], capture_output=True, text=True, timeout=200
            )
            assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(asked.read_text()) == prompts
        return json.loads(given.read_text())

    return answers


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_tokens_are_those_of_plain_vllm(topology, cluster, tiny_models, plain, tmp_path):
    model = tiny_models("mixtral")
    slurm = {"topology": topology, "spares": 0, "standby_head": False, **TOPOLOGIES[topology]}
    config = config_for(model, attention={"workers": 1}, cluster={"slurm": slurm})
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    with serving(cluster, config, tmp_path) as run:
        people = Crowd(run, vocab, new_tokens=NEW_TOKENS)
        assert people.expected == plain(people.prompts)
        where = {w["id"]: w["host"] for w in people.workers()}
        assert {name for name in where if name[:2] != "cs"} == {"aw0", "ew0", "ew1"}
        # Every worker is a step of its own, or a job of its own.
        if topology == "pool":
            jobs = cluster.call("squeue", "-h", "-t", "R", "-o", "%j").split()
            assert set(where) <= {job.split("-")[-1].split(".")[0] for job in jobs}
        else:
            steps = {s.name for s in cluster.steps(run.job)}
            assert {f"{name}.1" for name in where} <= steps
