"""A guest for the session, with two RDMA ports on one wire."""

from __future__ import annotations

import os
from xml.etree import ElementTree

import pytest

from tests.rdma.prepare import Unprepared
from tests.rdma.vm import Guest, GuestLost


@pytest.fixture(scope="session")
def boot(tmp_path_factory):
    """Makes guests, given what `Guest` takes after the directory; they end with the session."""
    if os.environ.get("TARRAGON_NO_GUEST") == "1":
        pytest.skip("TARRAGON_NO_GUEST=1: nothing of RDMA was tested")
    guests = []

    def make(**options):
        try:
            guests.append(Guest(tmp_path_factory.mktemp("guest"), **options))
        except (Unprepared, GuestLost) as error:
            pytest.fail(str(error), pytrace=False)
        return guests[-1]

    yield make
    for guest in guests:
        guest.close()


@pytest.fixture(scope="session")
def _wired(boot):
    return {}


@pytest.fixture
def guest(boot, _wired):
    """The guest of the session; another one if a test has lost it."""
    if not _wired or not _wired["guest"].alive:
        _wired["guest"] = boot()
        wire(_wired["guest"], "lay")
    return _wired["guest"]


def wire(guest, *what):
    """Do to the wire what wire.sh names."""
    done = guest.run(["sh", "tests/rdma/wire.sh", *what], 30)
    assert done.status == 0, done.output


@pytest.fixture
def run_tests(guest, subtests):
    """Run pytest in the guest; every test there is a subtest here.

    What is skipped in the guest has failed, for all that it needs is there.
    """

    def run(*args, deadline_s, **env):
        results = guest.directory / "results.xml"
        results.unlink(missing_ok=True)
        options = ["-q", "-p", "no:cacheprovider", "--junitxml=/jobs/results.xml"]
        done = guest.run(["python", "-m", "pytest", *options, *args], deadline_s, **env)
        if done.status not in (0, 1):
            pytest.fail(f"pytest ended with {done.status} in the guest:\n{done.output[-8000:]}")
        print(done.output.splitlines()[-1])
        for case in ElementTree.parse(results).iter("testcase"):
            with subtests.test(f"{case.get('classname')}::{case.get('name')}"):
                bad = [part for part in case if part.tag in ("failure", "error", "skipped")]
                if bad:
                    text = f"{bad[0].tag}: {bad[0].get('message')}\n{bad[0].text or ''}"
                    pytest.fail(f"in the guest: {text}", pytrace=False)

    return run
