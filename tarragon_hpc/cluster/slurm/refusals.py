"""Why Slurm took no job: its words, and the key of the configuration that they are about. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tarragon_hpc.cluster.slurm.resources import components
from tarragon_hpc.errors import ClusterError, ConfigError, TarragonError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tarragon_hpc.cluster.slurm.resources import Component
    from tarragon_hpc.config import Config

_UNREACHABLE = re.compile(
    "unable to contact slurm controller|socket timed out|connection refused|communication"
    "|zero bytes were transmitted|could not establish a configuration source|no such command"
    "|temporarily unable|unable to establish|no answer within|protocol authentication"
    "|slurmctld|munge|cred(ential)? |unable to process configuration|cannot stat file",
    re.IGNORECASE,
)

# What of which section or of cluster.slurm itself; the first that matches counts.
_KEYS = [
    (r"\bqos\b", "qos"),
    (r"account\b", "account"),
    (r"\btime limit|requested time", "time"),
    (r"invalid partition|partition.*(not available|inactive|down)|use this partition", "partition"),
    (r"reservation", "reservation"),
    (r"feature|constraint", "constraint"),
    (r"permi(tted|ssion)|access", "account"),
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
_NEVER = re.compile("requested node configuration is not available", re.IGNORECASE)


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
    if _NEVER.search(words):
        parts = components(config)
        if len(parts) == 1:
            key, told = parts[0].name, _size(parts[0])
        else:
            key, told = "nodes", "; ".join(f"{part.name}: {_size(part)}" for part in parts)
        if any(part.config.slots == 1 and part.nodes > 1 for part in parts):
            words += "; nodes.slots_per_node puts more than one worker on a node"
        return ConfigError(f"cluster.slurm.{key}", f"{told}: Slurm says: {words}")
    return UserError(f"cluster.slurm: Slurm says: {words}")


def never(stderr: str) -> bool:
    """Whether what `sbatch --test-only` said means that no node will ever be as asked for. Such a
    job is taken nevertheless by many a Slurm, and waits for ever.
    """
    return _NEVER.search(slurms_words(stderr)) is not None


def slurms_words(stderr: str) -> str:
    """The errors in what a command said, without decoration, each once; on one line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Try ")]
    errors = [line for line in lines if "error:" in line or "fatal:" in line] or lines
    prefix = re.compile(
        r"^(s[a-z]+: )?((error|fatal): )?(lua: |cli_filter[^:]*: )?"
        r"((Batch|Allocation) job submission failed: |allocation failure: )?",
    )
    return "; ".join(dict.fromkeys(prefix.sub("", line) for line in errors))


def _size(part: Component) -> str:
    """What is asked for of one component, in words."""
    nodes = part.config
    told = f"{part.nodes} node{'s' * (part.nodes != 1)} with"
    told += f" {nodes.slots} x {nodes.cpus_per_slot} CPUs"
    if nodes.gpus_per_node:
        told += f" and {nodes.gpus_per_node} GPUs" + f" ({nodes.gpu_type})" * bool(nodes.gpu_type)
    told += f", memory {nodes.memory}" * bool(nodes.memory)
    told += f", constraint {nodes.constraint}" * bool(nodes.constraint)
    return told + f", partition {nodes.partition}" * bool(nodes.partition)


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
