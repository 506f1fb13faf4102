"""What needs a kernel with RDMA devices or netem, run in a guest that has both."""

from __future__ import annotations

import json

import pytest

from tests.rdma.conftest import wire


def test_the_transport_suite(run_tests):
    run_tests("tests/conformance", "-k", "shm", deadline_s=120)


def doctor(guest):
    done = guest.run(["tarragon", "doctor", "rdma", "network", "--json"], 60)
    assert done.status == 0, done.output
    return json.loads(done.output)


def test_the_doctor_of_a_machine_with_ports(guest):
    found = doctor(guest)
    assert found["rdma"]["present"], found
    print(json.dumps(found, indent=1))
