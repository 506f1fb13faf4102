"""A guest for the session, with two RDMA ports on one wire; its results become ours."""

from __future__ import annotations

import json
import os
from xml.etree import ElementTree

import pytest

from tests.rdma.prepare import Unprepared
from tests.rdma.vm import Guest

# Only test_guest.py runs these.
collect_ignore = [] if os.environ.get("TARRAGON_IN_GUEST") else ["in_guest"]


@pytest.fixture(scope="session")
def boot(tmp_path_factory):
    """Makes guests, given what `Guest` takes after the directory; they end with the session."""
    if os.environ.get("TARRAGON_NO_GUEST") == "1":
        pytest.skip("TARRAGON_NO_GUEST=1: RDMA, and TCP over a slow wire, were not tested")
    guests = []

    def make(**options):
        try:
            guests.append(Guest(tmp_path_factory.mktemp("guest"), **options))
        except Unprepared as error:
            pytest.fail(str(error), pytrace=False)
        return guests[-1]

    yield make
    for guest in guests:
        guest.close()


@pytest.fixture(scope="session")
def _booted():
    return []


@pytest.fixture
def guest(boot, _booted):
    """The guest of the session with its wire whole; another one if a test has lost it."""
    if not _booted or not _booted[-1].alive:
        _booted.append(boot())
        wire(_booted[-1], "lay")
    yield _booted[-1]
    if _booted[-1].alive:
        wire(_booted[-1], "mend")


def wire(guest, *what):
    """Do to the wire what wire.sh names."""
    done = guest.run(["sh", "tests/rdma/wire.sh", *what], 60)
    assert done.status == 0, done.output


def start_tests(guest, *args, deadline_s, **env):
    """Start pytest in a guest; `tests_end` waits for it."""
    (guest.directory / "results.xml").unlink(missing_ok=True)
    options = ["-q", "-p", "no:cacheprovider", "--junitxml=/jobs/results.xml", "--timeout=120"]
    return guest.start(["python", "-m", "pytest", *options, *args], deadline_s, **env)


@pytest.fixture
def tests_end(subtests):
    """Wait for tests that were started in a guest; every one of them is a subtest here.

    What is skipped in the guest has failed, for all that it needs is there.
    """

    def check(guest, job):
        done = guest.wait(job)
        if done.status not in (0, 1):
            guest.close()  # who knows what is still going on in it
            pytest.fail(f"pytest ended with {done.status} in the guest:\n{done.output[-8000:]}")
        for case in ElementTree.parse(guest.directory / "results.xml").iter("testcase"):
            with subtests.test(case.get("name")):
                bad = [part for part in case if part.tag in ("failure", "error", "skipped")]
                if bad:
                    text = f"{bad[0].tag}: {bad[0].get('message')}\n{bad[0].text or ''}"
                    pytest.fail(f"{case.get('classname')} in the guest: {text}", pytrace=False)

    return check


@pytest.fixture
def run_script(guest, subtests):
    """Run a script in the guest that prints a line of JSON for each `case`, with its `problems`;
    each is a subtest here."""

    def run(script, *args, deadline_s):
        done = guest.run(["python", "-m", script, *args], deadline_s)
        cases = json_lines(done.output)
        for case in cases:
            with subtests.test(case["case"]):
                assert not case["problems"], case
        if done.status != (1 if any(case["problems"] for case in cases) else 0) or not cases:
            pytest.fail(f"{script} ended with {done.status} in the guest:\n{done.output[-8000:]}")

    return run


def json_lines(output):
    """The objects among the lines."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]
