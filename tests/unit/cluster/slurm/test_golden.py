"""The script of every configuration in configs/, in every topology, as text that people can read.

python -m tests.unit.cluster.slurm.test_golden      writes golden/ anew; then look at the diff
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tarragon_hpc.cli.render import script
from tarragon_hpc.cluster.work import Work
from tarragon_hpc.config import load_config

CONFIGS = Path(__file__).parents[4] / "configs"
GOLDEN = Path(__file__).parent / "golden"
TOPOLOGIES = ("single", "hetjob", "pool")
CASES = [(p, t) for p in sorted(CONFIGS.rglob("*.yaml")) for t in TOPOLOGIES]


def render(path, topology):
    overrides = ["cluster.backend=slurm", f"cluster.slurm.topology={topology}"]
    return script(load_config(path, overrides), Work(), python="/opt/tarragon/bin/python")


def golden(path, topology):
    return GOLDEN / f"{path.stem}.{topology}.sh"


@pytest.mark.parametrize(("path", "topology"), CASES, ids=lambda v: getattr(v, "stem", v))
def test_script(path, topology):
    assert render(path, topology) == golden(path, topology).read_text(encoding="utf-8")


def test_nothing_else_is_golden():
    assert set(GOLDEN.iterdir()) == {golden(*case) for case in CASES}


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.iterdir():
        old.unlink()
    for case in CASES:
        golden(*case).write_text(render(*case), encoding="utf-8")
