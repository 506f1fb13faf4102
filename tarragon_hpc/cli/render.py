"""`tarragon render`: the batch script of a configuration, for people who submit by hand.

The script holds the whole configuration, so that it can be copied, kept and piped to sbatch from
anywhere. The run directory is made when the job begins, by `tarragon head --new -`, which reads the
configuration from the script; job and run are called by what the configuration says.
"""

from __future__ import annotations

import re
import shlex
import sys
from typing import TYPE_CHECKING

import yaml

from tarragon_hpc.cli.serve import read_config
from tarragon_hpc.cluster.rendezvous import run_stem
from tarragon_hpc.cluster.slurm.checks import check, prepared
from tarragon_hpc.cluster.slurm.sbatch import PYTHON, would_run
from tarragon_hpc.cluster.slurm.script import head_script

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tarragon_hpc.cluster.work import Work
    from tarragon_hpc.config import Config

OUTPUT = "tarragon-%j.log"
"""Of a job that is submitted by hand: in the directory where sbatch is called."""


def render(
    path: Path | None,
    overrides: Sequence[str],
    site: str | None,
    work: Work,
    *,
    test_only: bool,
    allow_fragile: bool,
) -> int:
    """Print the script, or what Slurm says of it; returns the exit status."""
    on_slurm = [*overrides, "cluster.backend=slurm"] if path or overrides else []
    config = prepared(read_config(path, on_slurm, site, allow_fragile=allow_fragile))
    check(config)
    text = script(config, work)
    if config.gateway.api_keys and not test_only:
        print("note: the script holds gateway.api_keys", file=sys.stderr)
    print(would_run(text, config) if test_only else text, end="\n" if test_only else "")
    return 0


def script(config: Config, work: Work, python: str = PYTHON) -> str:
    """The script of a configuration. Raises ConfigError."""
    told = _dump(config)
    end = "CONFIG"
    while re.search(rf"^{end}$", told, re.MULTILINE):
        end += "_"
    command = [python, "-u", "-m", "tarragon_hpc.cli", "head", "--new", "-"]
    if work.kind == "generate":
        command += ["--input", shlex.quote(work.source), "--output", shlex.quote(work.target)]
    command.append(f"<<'{end}'")
    name = f"tarragon-{run_stem(config)}"
    return f"{head_script(config, command, job_name=name, output=OUTPUT)}{told}{end}\n"


def _dump(config: Config) -> str:
    """What is not the default, and the port, which may have been chosen although it is."""
    data = config.model_dump(mode="json", exclude_defaults=True)
    data.setdefault("gateway", {})["port"] = config.gateway.port
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return text
