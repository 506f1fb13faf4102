"""What needs a kernel with RDMA devices or netem, run in a guest that has both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.rdma.conftest import start_tests, wire

SCRIPTS = sorted(Path(__file__).with_name("in_guest").glob("*.py"))
SUITE_S = 900  # a minute or two, unless the machine is busy
# Over TCP, where latency and loss can make a difference; all of it takes minutes of waiting.
SLOW = (
    "in_order",
    "any_order",
    "large",
    "both_directions",
    "late_reply",
    "killed",
    "cut_link",
    "silence",
)
DEATH = "node_death"  # takes two guests: test_node_death.py


@pytest.mark.timeout(SUITE_S + 200)
def test_the_transport_suite_over_rdma_and_over_a_slow_wire(boot, guest, tests_end):
    """In two guests at once, for both of them wait most of the time."""
    suite = "tests/conformance", "-k"
    rdma = start_tests(guest, *suite, "rdma", deadline_s=SUITE_S)
    slow = boot()
    wire(slow, "lay")
    wire(slow, "slow", "20ms", "5%")
    what = f"slow-tcp and ({' or '.join(SLOW)})"
    tcp = start_tests(slow, *suite, what, deadline_s=SUITE_S, TARRAGON_SLOW_WIRE="1")
    try:
        tests_end(slow, tcp)
        slow.close()
    finally:
        tests_end(guest, rdma)


@pytest.mark.parametrize("name", [s.stem for s in SCRIPTS if s.stem != DEATH])
def test_a_script(run_script, name):
    run_script(f"tests.rdma.in_guest.{name}", deadline_s=250)


def doctor(guest):
    """What it says of the ways to other nodes: for the rest it would import torch for a minute."""
    what = ["rdma", "verbs", "transport", "network"]
    done = guest.run(["python", "-m", "tarragon_hpc.cli", "doctor", *what, "--json"], 150)
    assert done.status == 0, done.output
    return json.loads(done.output)


def test_the_doctor_of_a_machine_with_ports(guest):
    found = doctor(guest)
    assert all(finding["present"] for finding in found.values())
    assert found["rdma"]["detail"].startswith(
        "rxe0 port 1: ACTIVE, RoCE, GID 1 (10.77.0.1 RoCE v2), MTU 4096, netdev v0"
    )
    assert found["verbs"]["detail"].startswith("pyverbs ")
    assert found["transport"]["detail"] == (
        "auto: rdma by rxe0 port 1, GID 1, to peers on the same fabric (roce); tcp to others"
    )
    assert "v0 10.77.0.1" in found["network"]["detail"]


def test_the_doctor_of_a_machine_whose_port_is_down(guest):
    wire(guest, "cut")
    found = doctor(guest)
    assert not found["rdma"]["present"]
    assert "rxe0 port 1: DOWN, RoCE, " in found["rdma"]["detail"]
    assert found["transport"]["detail"] == (
        "auto: tcp to other nodes: rxe0 port 1 is DOWN; rxe1 port 1 is DOWN"
    )
    assert "v0 10.77.0.1 (down)" in found["network"]["detail"]
