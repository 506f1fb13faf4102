"""Workers die where nothing is kept in reserve: no shadows, no checkpoint stores.

It is seen within 50 ms, nothing hangs, fails or changes, and they are replaced: an EW's death costs
a load from disk, an AW's requests are computed anew by another one.
"""

from __future__ import annotations

import time

import pytest

from tarragon_hpc.bench.arrivals import longest_gap
from tests.e2e.crowd import Crowd, decoding, start

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def service(tiny_models, tmp_path_factory):
    """(service, vocabulary)."""
    attention = {"workers": 2, "prefix_caching": False}
    directory = tmp_path_factory.mktemp("death")
    context, vocab = start(
        tiny_models, directory, "mixtral", attention=attention, experts={"workers": 2}
    )
    with context as running:
        yield running, vocab


@pytest.fixture(scope="module")
def people(service):
    return Crowd(*service)


def test_killed_expert_worker(people):
    streams = people.check((decoding(30), people.kill("ew1")))
    # Nobody waited for long.
    assert max(longest_gap(s, s.times[0], s.times[-1]) for s in streams) < 20
    people.whole()
    assert people.worker("ew1")["incarnation"] == 2
    assert [people.worker(name)["incarnation"] for name in ("aw0", "aw1")] == [1, 1]
    people.check()


def test_killed_attention_worker(people, service):
    drawing = Crowd(*service, seed=1, temperature=0.8)
    mark = people.mark()
    drawing.check((decoding(40), drawing.kill("aw0")))
    assert {line["worker"] for line in people.since(mark, "request resumed")} == {"aw1"}
    people.whole()
    # There is nobody for a while.
    people.check((decoding(30), people.kill_all("aw1", "aw0", pauses=[0.05])))
    resumed = people.since(mark, "request resumed")
    assert len(resumed) >= 12
    assert all(line["restored"] == line["cached"] == 0 for line in resumed)
    assert all(line["computed"] > 30 for line in resumed)
    assert all(line["reason"] for line in resumed)
    status = people.whole()
    assert status["requests"]["ended"].get("failed", 0) == 0


def test_death_is_seen_within_50_ms(people):
    people.whole()
    kill, mark = people.kill("ew0"), people.mark()
    killed = time.time()
    kill()
    deadline = time.monotonic() + 5
    while not (seen := [e for e in people.timeline()[mark:] if e.get("worker") == "ew0"]):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert seen[0]["time"] - killed < 0.05
    people.whole()
