"""The names of spares."""

from __future__ import annotations

from tarragon_hpc.cluster.slurm.spares import unused


def test_no_name_is_used_twice_in_a_run_whatever_head_it_has():
    assert unused([]) == 0
    assert unused(["head.log", "aw0.1.srun", "ew0.1.log", "sparex.srun"]) == 0
    assert unused(["spare0.srun", "spare10.srun", "spare9.srun", "spare99.log"]) == 11
