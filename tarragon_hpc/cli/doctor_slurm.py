"""`tarragon doctor --slurm`: what the cluster has, and with --nodes 2 what two nodes see."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarragon_hpc.cli.doctor_files import run_root
from tarragon_hpc.cli.finding import Finding
from tarragon_hpc.cluster.root import local_path
from tarragon_hpc.cluster.slurm import site_facts
from tarragon_hpc.cluster.slurm.commands import SlurmError, call, plain_environment
from tarragon_hpc.cluster.slurm.refusals import explain
from tarragon_hpc.cluster.slurm.resources import gpu_request
from tarragon_hpc.cluster.slurm.script import site_flags, skipped, where
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ClusterError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from tarragon_hpc.config import Config
    from tarragon_hpc.config.slurm import SlurmConfig

_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "sinfo", "scontrol")
_PROGRAM = "tarragon_hpc.cluster.slurm.two_nodes"
_NODES = 2
_MINUTES = 5
_GIB = 1 << 30


def examine_slurm(
    what: Collection[str],
    path: Path | None,
    overrides: Sequence[str],
    root: str | None,
    *,
    site: str | None = None,
    job: bool,
) -> dict[str, Finding]:
    """All findings; job: those of two nodes too. Raises UserError or ClusterError."""
    if set(what) - {"slurm"}:
        raise UserError(
            f"doctor: {' '.join(what)}: with --slurm or --nodes no other lines are shown"
        )
    config = load_config(path or {"model": {"path": "."}}, overrides, site=site)
    root = root or config.run.root
    findings = cluster()
    if not job:
        return findings | run_directory(root)
    if not findings["slurm"].present:
        raise ClusterError(f"slurm: {findings['slurm'].detail}")
    return findings | between_nodes(config, root, _tell)


def cluster() -> dict[str, Finding]:
    """Slurm, its partitions and its settings; one line saying why there is nothing to say."""
    if missing := [name for name in _COMMANDS if shutil.which(name) is None]:
        return {"slurm": Finding(False, f"not in PATH: {', '.join(missing)}")}
    try:
        settings = site_facts.settings(call(site_facts.CONFIG, limit_s=20))
        found = site_facts.partitions(call(site_facts.SINFO, limit_s=20))
    except SlurmError as error:
        return {"slurm": Finding(False, f"its commands are there, but {error}")}
    findings = {
        "slurm": Finding(
            True,
            f"{settings.get('SLURM_VERSION', 'of unknown version')},"
            f" cluster {settings.get('ClusterName', '?')}",
        )
    }
    for partition in found:
        findings[f"partition {partition.name}"] = Finding(
            partition.up, site_facts.describe(partition)
        )
    if not found:
        findings["partition"] = Finding(False, "sinfo shows none to this user")
    findings["limits"] = Finding(True, site_facts.limits(settings))
    return findings


def run_directory(root: str) -> dict[str, Finding]:
    """What this node says of where runs are to be."""
    return {"run.root": run_root(root, "slurm")}


def between_nodes(config: Config, root: str, tell: Callable[[str], None]) -> dict[str, Finding]:
    """Have two processes on two nodes try the run directory. Raises UserError or ClusterError."""
    base = local_path(root)
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".tarragon-doctor-", dir=base))
    except OSError as error:
        raise UserError(f"run.root: {base}: {error.strerror or error}") from None
    try:
        tell(f"a job of {_NODES} nodes tries {base}; Ctrl-C gives up")
        _run(command(config.cluster.slurm, scratch), config, tell)
        facts = [json.loads((scratch / f"facts.{i}.json").read_text()) for i in range(_NODES)]
        result = json.loads((scratch / "result.json").read_text())
    except FileNotFoundError as error:
        raise ClusterError(
            f"run.root: {base}: what the nodes wrote is not here ({error.filename}):"
            " is it a directory that this machine and all nodes share?"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return judge(facts, result)


def command(slurm: SlurmConfig, scratch: Path) -> list[str]:
    """The srun that does it. Pure."""
    nodes = slurm.nodes
    flags: dict[str, str | int | bool | None] = {
        "job-name": "tarragon-doctor",
        "nodes": _NODES,
        "ntasks": _NODES,
        "ntasks-per-node": 1,
        "time": _MINUTES,
        "kill-on-bad-exit": 1,
        "mem": nodes.memory,
    }
    flags |= where(slurm, nodes)
    if nodes.gpus_per_node:
        flag, count = gpu_request(slurm, nodes, nodes.gpus_per_node)
        flags[flag] = count
    flags |= {n: value for n, value in site_flags(slurm).items() if not n.startswith("mail")}
    skip = skipped(slurm)
    words = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in flags.items()
        if value not in (None, False) and name not in skip
    ]
    return ["srun", *words, sys.executable, "-m", _PROGRAM, str(scratch)]


def judge(facts: list[dict[str, Any]], result: dict[str, Any]) -> dict[str, Finding]:
    """The findings of the two processes. Pure."""
    first, second = (fact["node"] for fact in facts)
    findings = {f"node {fact['node']}": _node(fact) for fact in facts}
    findings["between them"] = Finding(
        True, f"TCP from one to the other and back: {result['round_trip_s'] * 1e6:.0f} µs"
    )
    for name, key in ((f"{first} to {second}", "there_s"), (f"{second} to {first}", "back_s")):
        took = result[key]
        findings[name] = Finding(
            True,
            f"a file is seen after {_ms(took['median'])} (median), {_ms(took['max'])} (longest)",
        )
    both, none = result["claimed_by_both"], result["claimed_by_none"]
    claimed = f"of {result['claims']} names that both create, "
    claimed += f"{both} went to both" if both else f"{none} to nobody" if none else "each to one"
    findings["exclusive"] = Finding(not both and not none, claimed)
    torn, missing = result["torn"], result["missing"]
    read = f"{result['replaced']} times while the other node read {result['reads']} times: "
    read += f"{torn} torn, {missing} missing" if torn or missing else "always whole"
    findings["replace"] = Finding(not torn and not missing, read)
    return findings


def _node(fact: dict[str, Any]) -> Finding:
    locked = fact["memlock_bytes"]
    gpus = fact["gpus"]
    devices = "; ".join(f"{n} {a}" for n, a in fact["interfaces"].items() if n != "lo")
    parts = [
        f"{_count(len(gpus), 'GPU')} ({','.join(gpus)})" if gpus else "no GPU",
        _count(fact["cpus"], "CPU"),
        devices or "no network but the loopback",
        "memlock " + ("without limit" if locked is None else f"{locked >> 10} KiB"),
        f"{fact['free_bytes'] / _GIB:.1f} GiB free in run.root",
    ]
    return Finding(True, ", ".join(parts))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _run(words: list[str], config: Config, tell: Callable[[str], None]) -> None:
    """Run srun and pass on what it says while it waits. Raises ClusterError or UserError."""
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, env=plain_environment(),
    )  # fmt: skip
    lines = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if "queued and waiting" in line or "has been allocated" in line:
                tell(line.strip().removeprefix("srun: "))
    finally:
        if process.poll() is None:
            process.terminate()
        status = process.wait()
    if status:
        # What the tasks said comes first: srun's own lines follow from it.
        ours = [line.strip() for line in lines if not line.startswith(("srun:", "slurmstepd:"))]
        raise ClusterError(f"srun: {ours[-1]}") if ours else explain("".join(lines), config)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
