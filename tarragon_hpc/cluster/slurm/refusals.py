"""Why Slurm took no job: its words, and the key of the configuration that they are about. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tarragon_hpc.errors import ClusterError, ConfigError, TarragonError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tarragon_hpc.config import Config

_UNREACHABLE = re.compile(
    "unable to contact slurm controller|socket timed out|connection refused|communication"
    "|zero bytes were transmitted|could not establish a configuration source|no such command"
    "|temporarily unable|unable to establish|no answer within|protocol authentication"
    "|slurmctld|munge|cred(ential)? ",
    re.IGNORECASE,
)

# What of which section or of cluster.slurm itself; the first that matches counts.
_KEYS = [
    (r"partition.*(specif|invalid|not available|inactive|down)|invalid partition", "partition"),
    (r"\btime limit|requested time", "time"),
    (r"\bqos\b", "qos"),
    (r"reservation", "reservation"),
    (r"feature|constraint", "constraint"),
    (r"account\b|group not permitted|access", "account"),
    (r"gres option unsupported|gpus-per-node", "gpu_flag"),
    (r"\bgres\b|generic resource|\bgpus?\b|tres specification", "gpus_per_node"),
    (r"\bmem(ory)?\b", "memory"),
    (r"node count|more nodes|too many nodes", "nodes"),
    (r"cpu count|more processors|cpus? per|too many cpus", "cpus_per_slot"),
    (r"option|directive|mail|licen[sc]e|wckey|burst|comment|exclusive", "directives"),
]
_OF_NODES = frozenset(
    {"partition", "constraint", "gpus_per_node", "memory", "nodes", "cpus_per_slot"}
)
_SIZES = ("nodes", "gpus_per_node", "gpu_type", "cpus_per_slot", "memory", "constraint")


def explain(stderr: str, config: Config) -> TarragonError:
    """The error to raise for what sbatch said: a UserError where the request is at fault, a
    ClusterError where Slurm is. One line, with Slurm's own words.
    """
    words = slurms_words(stderr)
    if _UNREACHABLE.search(words):
        return ClusterError(f"sbatch: {words}")
    # The general line ("Batch job submission failed: …") comes after what is wrong in particular.
    for part in [*words.split("; "), words]:
        for pattern, name in _KEYS:
            if re.search(pattern, part, re.IGNORECASE) is None:
                continue
            key, value = _key(name, words, config)
            return ConfigError(key, f"{value!r}: Slurm says: {words}")
    if "node configuration" in words.lower():
        sizes = ", ".join(
            f"{name} {value}"
            for name in _SIZES
            if (value := getattr(config.cluster.slurm.nodes, name)) is not None
        )
        return ConfigError("cluster.slurm.nodes", f"{sizes}: Slurm says: {words}")
    return UserError(f"cluster.slurm: Slurm says: {words}")


def slurms_words(stderr: str) -> str:
    """The errors in what a command said, without decoration, each once; on one line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line or "fatal:" in line] or lines
    prefix = re.compile(
        r"^(s[a-z]+: )?((error|fatal): )?(lua: |cli_filter[^:]*: )?"
        r"((Batch|Allocation) job submission failed: )?",
    )
    return "; ".join(dict.fromkeys(prefix.sub("", line) for line in errors))


def _key(name: str, words: str, config: Config) -> tuple[str, Any]:
    """The whole name of a key and its value; of the sections of nodes the one that is meant."""
    slurm = config.cluster.slurm
    if name not in _OF_NODES:
        return f"cluster.slurm.{name}", getattr(slurm, name)
    sections = ("head_nodes", "aw_nodes", "ew_nodes", "nodes")
    found = {
        section: getattr(nodes, name)
        for section in sections
        if (nodes := getattr(slurm, section)) is not None
    }
    section = _meant(found.items(), words)
    return f"cluster.slurm.{section}.{name}", found[section]


def _meant(values: Iterable[tuple[str, Any]], words: str) -> str:
    """The section whose value Slurm repeats, or the last that has one."""
    given = [(section, value) for section, value in values if value]
    named = [s for s, v in given if re.search(rf"(?<![\w-]){re.escape(str(v))}(?![\w-])", words)]
    return (named or [section for section, _ in given[-1:]] or ["nodes"])[0]
