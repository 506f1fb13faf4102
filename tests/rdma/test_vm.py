"""The guest itself: a job's end, and the guest's, whoever brings it about."""

from __future__ import annotations

import os
import signal

import pytest

from tests.rdma.vm import GuestLost


def test_a_job_has_a_status_and_an_output_and_leaves_nothing_behind(guest, tmp_path):
    done = guest.run(["sh", "-c", f"echo $WHO; touch {tmp_path}/file; exit 7"], 30, WHO="aw0")
    assert (done.status, done.output) == (7, "aw0\n")
    assert not list(tmp_path.iterdir())


def test_a_job_that_overruns_is_killed_and_the_guest_goes_on(guest):
    assert guest.run(["sleep", "1000"], 1).status == 124
    assert guest.run(["true"], 30).status == 0


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_guest_that_does_not_answer_is_ended(boot, how):
    guest = boot(boot_s=1)
    os.kill(guest.pid, how)
    with pytest.raises(GuestLost, match="the guest was lost in boot"):
        guest.run(["true"], 1)
    assert not guest.alive
