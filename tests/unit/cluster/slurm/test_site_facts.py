from __future__ import annotations

import pytest

from tarragon_hpc.cluster.slurm.site_facts import describe, limits, partitions, settings

SINFO = """\
gpu*|up|2-00:00:00|3|idle|64|515000+|gpu:a100:4(S:0-1)
gpu*|up|2-00:00:00|1|drain*|64|257000|gpu:a100:4(S:0-1)
gpu*|up|2-00:00:00|2|alloc|64|257000|gpu:h100:8,gpu:h100_1g:2,nvme:1
debug|down|30:00|1|idle|8|8000|(null)
something else
"""
CONFIG = """\
Configuration data as of 2026-11-27T02:31:35
AccountingStorageType   = accounting_storage/none
KillWait                = 30 sec
PreemptType             = preempt/none
SchedulerParameters     = bf_interval=60,bf_continue
SLURM_VERSION           = 22.05.8
SlurmdTimeout           = 300 sec

Slurmctld(primary) at n1 is UP
"""


def test_partitions():
    gpu, debug = partitions(SINFO)
    assert (gpu.name, gpu.default, gpu.up, gpu.limit) == ("gpu", True, True, "2-00:00:00")
    assert gpu.nodes == {"idle": 3, "drain*": 1, "alloc": 2}
    assert gpu.gpus == ("4 a100", "8 h100 + 2 h100_1g")
    assert describe(gpu) == (
        "default; 6 nodes (3 idle, 1 drain*, 2 alloc) of 64 CPUs, 503 or 251 GiB,"
        " 4 a100 or 8 h100 + 2 h100_1g GPUs; time limit 2-00:00:00"
    )
    assert describe(debug) == (
        "not up; 1 node (1 idle) of 8 CPUs, 7.81 GiB, no GPU; time limit 30:00"
    )
    assert partitions("") == []


@pytest.mark.parametrize(
    ("gres", "gpus"), [("gpu:2", ("2",)), ("gpu:0", ("0",)), ("nvme:1", ()), ("", ())]
)
def test_gpus(gres, gpus):
    (found,) = partitions(f"p|up|1:00|1|idle|1|1|{gres}")
    assert found.gpus == gpus


def test_limits():
    found = settings(CONFIG)
    assert found["SLURM_VERSION"] == "22.05.8"
    assert limits(found) == (
        "a dead node is noticed after 300 sec (not waited for); KillWait 30 sec; backfill every"
        " 60 s (hetjobs start by it); preemption none; accounting none (not needed)"
    )
    assert "backfill every 30 s" in limits({})
