"""Two guests on one wire, of which one loses its power."""

from __future__ import annotations

import json
import time

from tests.rdma.conftest import json_lines

PYTHON = ["python", "-m", "tests.rdma.in_guest.node_death"]


def test_the_death_of_a_node_is_masked(boot, tmp_path):
    """An AW and an EW in one guest, and the EW that it asks first in the other."""
    aw, ew = (boot(cpus=1, memory_mib=1024, wire=tmp_path, end=end) for end in (1, 2))
    serving = ew.start([*PYTHON, "ew"], 250)
    address = printed(ew, serving, "address")["address"]
    asking = aw.start([*PYTHON, "aw", json.dumps(address)], 250)
    printed(aw, asking, "asking")
    ew.close()
    done = aw.wait(asking)
    outcome = json_lines(done.output)[-1]
    print(json.dumps(outcome))
    assert done.status == 0, done.output
    assert not outcome["problems"], done.output


def printed(guest, job, key):
    """The first line of JSON with that key which a running job prints."""
    end = time.monotonic() + 150
    while time.monotonic() < end and guest.alive:
        output = job.folder / "output"
        text = output.read_text(errors="replace") if output.exists() else ""
        lines = [line for line in json_lines(text.rpartition("\n")[0]) if key in line]
        if lines:
            return lines[0]
        time.sleep(0.05)
    raise AssertionError(f"no {key}: {text}")
