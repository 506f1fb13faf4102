"""Every way in which Slurm, nodes and processes let a run down, with streams running.

One service for all of them, in a job of three nodes of two slots: two AWs, two EWs, two spare
slots. Each test leaves it whole.
"""

from __future__ import annotations

import json
import os
import signal

import pytest

from slurm.testcluster import processes
from slurm.testcluster.cluster import wait
from tarragon_hpc.cluster.rendezvous import read_head
from tests.e2e.crowd import Crowd, decoding
from tests.slurm.service import config_for, serving
from tests.slurm.streams import Resumable

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(500)]

LENGTHS = [1, 90, 7, 30, 55, 12]
NEW_TOKENS = 200
SPARE_SLOT_S = 4.0


@pytest.fixture(scope="module")
def run(cluster, tiny_models, tmp_path_factory):
    config = config_for(
        tiny_models("mixtral"), cluster={"slurm": {"spares": 2}}, gateway={"resume_s": 90}
    )
    with serving(cluster, config, tmp_path_factory.mktemp("failures")) as run:
        yield run
    cluster.heal()


@pytest.fixture(scope="module")
def people(run, tiny_models):
    vocab = json.loads((tiny_models("mixtral") / "config.json").read_text())["vocab_size"]
    return Crowd(run, vocab, lengths=LENGTHS, new_tokens=NEW_TOKENS)


@pytest.fixture
def whole(people):
    """The run, whole before a test and after it."""
    people.whole()
    yield people
    people.whole()


def wait_for_spares(people):
    """Until both spare slots hold processes that have done their imports."""
    logs = people.service.run_dir / "logs"

    def warm():
        taken = {worker["step"] for worker in people.workers()}
        steps = people.service.cluster.steps(people.service.job)
        names = [step.name for step in steps if step.id not in taken]
        spares = [logs / f"{name}.srun" for name in names if name.startswith("spare")]
        return sum("ready after" in path.read_text() for path in spares if path.exists()) >= 2

    wait(warm, 200, "warm spares")


def replaced(people, name, before):
    """Wait until a worker has a successor and all is well; seconds until that served, as the run's
    timeline has it.
    """

    def done(status):
        worker = next(w for w in status["workers"] if w["id"] == name)
        return worker["incarnation"] > before["incarnation"] and worker["state"] == "serving"

    people.until(done, 120)
    people.whole()

    def restored():
        """A successor that serves may not be used yet."""
        for story in people.service.status()["failures"]:
            if (story["worker"], story["incarnation"]) == (name, before["incarnation"]):
                return story["seconds"].get("restored")
        return None

    wait(restored, 20, f"{name}: capacity restored")
    return restored()


@pytest.fixture(scope="module")
def spare_slot_s():
    """Seconds until a successor in a spare slot served, by role."""
    return {"aw": [], "ew": []}


@pytest.mark.parametrize("name", ["ew0", "aw0"])
def test_a_task_is_killed(whole, cluster, spare_slot_s, name):
    wait_for_spares(whole)
    before = whole.worker(name)
    step = before["step"]
    whole.check((decoding(8), lambda: cluster.kill_tasks(step)))
    spare_slot_s[name[:2]].append(replaced(whole, name, before))


@pytest.mark.parametrize(("name", "shepherd"), [("aw1", True), ("ew1", False)])
def test_an_srun_is_killed(whole, cluster, spare_slot_s, name, shepherd):
    wait_for_spares(whole)
    before = whole.worker(name)
    step = before["step"]
    old = cluster.tasks(step)
    words = cluster.named(step)
    whole.check((decoding(8), lambda: cluster.kill_srun(words, shepherd=shepherd)))
    spare_slot_s[name[:2]].append(replaced(whole, name, before))
    assert old
    assert not old & set(processes.parents()), "what had lost its srun still runs"


@pytest.mark.parametrize("name", ["ew0"])
def test_a_step_is_cancelled(whole, cluster, spare_slot_s, name):
    wait_for_spares(whole)
    before = whole.worker(name)
    step = before["step"]
    whole.check((decoding(8), lambda: cluster.cancel(step)))
    spare_slot_s[name[:2]].append(replaced(whole, name, before))


def test_a_spare_slot_serves_soon(spare_slot_s):
    """All of them: a warm process was there for each."""
    print({role: sorted(seconds) for role, seconds in spare_slot_s.items()})
    for seconds in spare_slot_s.values():
        assert max(seconds) <= SPARE_SLOT_S


def test_a_node_is_drained(whole, cluster):
    """What runs there goes on; what is started anew is started elsewhere."""
    before = whole.worker("ew0")
    node = cluster.where(before["step"])
    cluster.drain(node)
    try:
        whole.check((decoding(8), lambda: None))
        assert whole.worker("ew0")["incarnation"] == before["incarnation"]
        cluster.kill_tasks(before["step"])
        replaced(whole, "ew0", before)
        assert cluster.where(whole.worker("ew0")["step"]) != node
    finally:
        cluster.resume(node)


def test_the_head_is_killed(whole, cluster):
    run, first = whole.service, read_head(whole.service.run_dir)
    before = {w["id"]: w["incarnation"] for w in whole.workers()}
    clients = [Resumable(run, prompt, NEW_TOKENS, 90) for prompt in whole.prompts]
    for client in clients:
        client.start()
    wait(lambda: all(len(c.tokens) > 8 for c in clients), 60, "streams", every_s=0.02)
    os.kill(first.pid, signal.SIGKILL)
    for client in clients:
        client.join()
    assert {c.problem for c in clients} == {None}
    assert all(c.broken for c in clients)
    assert [c.tokens for c in clients] == whole.expected
    assert read_head(run.run_dir).pid != first.pid
    assert {w["id"]: w["incarnation"] for w in whole.workers()} == before, "not re-adopted"
    whole.check()


def test_only_a_slurmd_dies(whole, cluster):
    """A zombie: Slurm gives the node up, but what runs there could go on for ever."""
    host = batch_host(cluster, whole.service.job)
    node, name = worker_elsewhere(whole, cluster, host)
    before = whole.worker(name)
    old = cluster.tasks(before["step"])
    assert old
    with whole.busy():
        cluster.kill_slurmd(node)
        wait(lambda: cluster.nodes()[node].startswith("down"), 60, "node down")
        replaced(whole, name, before)
        wait(lambda: not old & set(processes.parents()), 10, "the zombie's end")
    cluster.start_slurmd(node)


def test_a_node_fails(whole, cluster):
    host = batch_host(cluster, whole.service.job)
    node, name = worker_elsewhere(whole, cluster, host)
    before = whole.worker(name)
    whole.check((decoding(8), lambda: cluster.fail_node(node)))
    replaced(whole, name, before)
    cluster.start_slurmd(node)


def batch_host(cluster, job):
    """The node with the batch process."""
    return cluster.call("squeue", "-h", "-j", job, "-o", "%B").strip()


def worker_elsewhere(people, cluster, host):
    """(a node other than that with an AW or an EW, the worker)."""
    for worker in people.workers():
        node = cluster.where(worker["step"])
        if worker["role"] != "cs" and node != host:
            return node, worker["id"]
    raise AssertionError(people.workers())
