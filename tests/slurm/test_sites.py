"""Sites differ, and the YAML alone says how: a service, and a job for a lost worker, on each."""

from __future__ import annotations

import json

import pytest

from tests.e2e.crowd import Crowd, decoding
from tests.slurm.service import config_for, serving
from tests.slurm.test_failures import batch_host, replaced

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(500)]

NODE = {"gpus_per_node": 1, "cpus_per_slot": 2}
NEW_JOB_S = 12.0

# What is wrong here would be refused by sbatch: none of these clusters has an accounting database.
SITES = {
    "nomem": {
        "nodes": {**NODE, "partition": "nomem", "memory": "4G"},
        "directives_skip": ["mem"],
    },
    "gpus-per-node": {
        "nodes": NODE,
        "gpu_flag": "gpus-per-node",
        "directives": {"comment": "from the site", "exclude": "n0"},
        "prologue": "export TARRAGON_SITE_TEST=1",
    },
}


@pytest.mark.parametrize("site", SITES)
def test_a_site_by_yaml_alone(site, clusters, tiny_models, tmp_path):
    """One AW and one EW, on a node each, no slot more: the EW's node is lost."""
    cluster, model = clusters("strict"), tiny_models("mixtral")
    config = config_for(
        model,
        attention={"workers": 1},
        experts={"workers": 1, "shadows": 0},
        checkpoint={"stores": 0},
        cluster={"slurm": {"spares": 0, "standby_head": False, **SITES[site]}},
    )
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    with serving(cluster, config, tmp_path) as run:
        job = cluster.call("scontrol", "show", "job", "-o", run.job)
        assert "Partition=nomem" in job or "Comment=from the site" in job
        people = Crowd(run, vocab, lengths=[1, 30, 80], new_tokens=60)
        before = people.worker("ew0")
        node = cluster.step(run.job, "ew0.1").node
        if node == batch_host(cluster, run.job):
            before = people.worker("aw0")
            node = cluster.step(run.job, "aw0.1").node
        # The node is not to be used again, as far as the run knows.
        people.check((decoding(5), lambda: cluster.fail_node(node)))
        took = replaced(people, before["id"], before)
        print(f"{before['id']}: a job of its own serves after {took} s")
        if before["id"] == "ew0":  # an AW takes longer than that where two cores do everything
            assert took <= NEW_JOB_S
        assert len(cluster.jobs()) == 2
        people.check()
    cluster.heal()
