"""In the PYTHONPATH of a job: heads start workers without an engine (tests/failover)."""

import sys

if "head" in sys.orig_argv:
    import dataclasses
    from pathlib import Path

    from tarragon_hpc.cluster import launching

    real = launching.plan_steps
    fake = Path(__file__).parents[2] / "failover" / "fake_worker.py"

    def plan(config):
        program = (sys.executable, str(fake), "")
        return [dataclasses.replace(spec, program=program) for spec in real(config)]

    launching.plan_steps = plan
