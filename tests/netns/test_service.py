"""The whole service with every worker on a host of its own; links fail, and no client notices."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tarragon_hpc.bench.injection import is_whole
from tests.e2e import oracle
from tests.e2e.crowd import NEW_TOKENS, Crowd, start
from tests.netns.slow_wire import slow_wire

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

WORKERS = ("aw0", "aw1", "ew0", "ew1", "cs0")
# A worker that is cut off for longer loses its place (heartbeats: 5 x 100 ms before that).
GRACE_S = 4.0
DELAY_MS = 5


@pytest.fixture(scope="module")
def hosts(make_hosts):
    return make_hosts(*WORKERS)


@pytest.fixture(scope="module")
def people(hosts, tiny_models, tmp_path_factory):
    """Twelve at the door of a service; what is right is what plain vLLM says."""
    directory = tmp_path_factory.mktemp("service")
    context, vocab = start(
        tiny_models,
        directory,
        "mixtral",
        attention={"workers": 2, "prefix_caching": False},
        experts={"workers": 2, "shadows": 1},
        checkpoint={"stores": 1, "restore": "always", "memory": "64MiB"},
        detection={"stopped_grace_s": GRACE_S},
        transport={"kind": "tcp", "interface": hosts.block},
        cluster={"prefix": {worker: hosts.prefix(worker) for worker in WORKERS}},
    )
    with context as running:
        crowd = Crowd(running, vocab)
        prompts, answers = directory / "prompts.json", directory / "answers.json"
        prompts.write_text(json.dumps(crowd.prompts))
        command = [sys.executable, oracle.__file__, "vllm", str(tiny_models("mixtral"))]
        command += [str(prompts), str(answers), str(NEW_TOKENS)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(answers.read_text()) == crowd.expected
        yield crowd
        assert crowd.status()["requests"]["ended"].get("failed", 0) == 0


@pytest.fixture(autouse=True)
def healed(hosts):
    """Whatever becomes of a test."""
    yield
    for host in WORKERS:
        hosts.heal(host)


def told(people, mark, event):
    """Of whom the timeline says so since then."""
    return {line["worker"] for line in people.since(mark, event)}


def test_every_worker_is_on_a_host_of_its_own_and_linked_by_tcp(people, hosts):
    namespaces = {Path(f"/proc/{w['pid']}/ns/net").readlink() for w in people.workers()}
    assert len(namespaces) == len(WORKERS)
    assert Path("/proc/self/ns/net").readlink() not in namespaces
    links = {w["id"]: w["links"] for w in people.workers() if w["role"] == "aw"}
    assert all(set(of.values()) == {"tcp"} for of in links.values())


@pytest.mark.parametrize(("worker", "fault"), [("ew0", "cut"), ("ew1", "silence")])
def test_an_expert_worker_that_cannot_be_reached_is_masked_and_used_again(
    people, hosts, worker, fault
):
    mark = people.mark()
    number = people.worker(worker)["incarnation"]
    with people.busy():
        people.until(lambda s: s["requests"]["running"] > 6)
        getattr(hosts, fault)(worker)
        people.until(lambda _: worker in told(people, mark, "failure masked"))
        hosts.heal(worker)
        people.until(lambda _: worker in told(people, mark, "worker trusted again"))
        people.until(is_whole)
    assert people.worker(worker)["incarnation"] == number
    assert not people.since(mark, "requests moved")


@pytest.mark.parametrize("worker", ["ew1", "aw1", "cs0"])
def test_a_worker_that_is_far_away_costs_time_and_nothing_else(people, hosts, worker):
    mark = people.mark()
    before = [w["incarnation"] for w in people.workers()]
    with people.busy():
        people.until(lambda s: s["requests"]["running"] > 6)
        with slow_wire(hosts, worker, DELAY_MS):
            people.check()
    people.whole()
    assert [w["incarnation"] for w in people.workers()] == before
    assert not people.since(mark, "requests moved")


def test_an_expert_worker_that_stays_silent_is_replaced(people, hosts):
    mark = people.mark()
    with people.busy():
        people.until(lambda s: s["requests"]["running"] > 6)
        hosts.silence("ew0")
        people.until(lambda _: people.since(mark, "worker lost"))
        hosts.heal("ew0")
        people.whole()
    assert told(people, mark, "worker lost") == {"ew0"}
    people.check()


@pytest.mark.parametrize("direction", ["both", "in"])
def test_what_a_silenced_attention_worker_says_later_is_not_listened_to(people, hosts, direction):
    """Its requests are moved; it goes on with them meanwhile, and tells of it when it can."""
    mark = people.mark()
    number = people.worker("aw0")["incarnation"]
    with people.busy():
        people.until(lambda s: s["requests"]["running_on"].get("aw0", 0) >= 3)
        hosts.silence("aw0", direction)
        people.until(lambda _: people.since(mark, "requests moved"))
        people.until(lambda _: people.since(mark, "request resumed"))
        time.sleep(0.5)
        hosts.heal("aw0")
        people.until(is_whole)
        people.until(lambda s: s["requests"]["running_on"].get("aw0", 0) >= 1)
    assert people.worker("aw0")["incarnation"] == number
    assert told(people, mark, "requests moved") == {"aw0"}
    assert told(people, mark, "request resumed") == {"aw1"}


def test_an_attention_worker_that_stays_silent_loses_its_place(people, hosts):
    mark = people.mark()
    with people.busy():
        # All but two of the twelve: at least one of the three on aw1 has KV to be restored.
        people.until(
            lambda s: (
                s["requests"]["running_on"].get("aw1", 0) >= 3
                and s["checkpoint"]["protected"] >= 10
            )
        )
        cut = time.monotonic()
        hosts.cut("aw1")
        people.until(lambda _: people.since(mark, "worker lost"))
        assert time.monotonic() - cut < GRACE_S + 5
        hosts.heal("aw1")
    (lost,) = people.since(mark, "worker lost")
    assert lost["worker"] == "aw1"
    assert any(line["restored"] > 0 for line in people.since(mark, "request resumed"))
    people.until(lambda _: people.worker("aw1")["incarnation"] == 2)
