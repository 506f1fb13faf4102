"""What `bench failover` is run with: prompts, the service's configuration, options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tarragon_hpc.bench.injection import Also
from tarragon_hpc.bench.load import Prompt
from tarragon_hpc.cluster.faults import KILL, SLOW, STOP, WIRE_FAULTS
from tarragon_hpc.config import load_config, merged
from tarragon_hpc.errors import UserError
from tarragon_hpc.ids import Role, worker_id

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from tarragon_hpc.bench.hosts import Hosts

FAULTS = (KILL, STOP, SLOW, *WIRE_FAULTS)
ROLES = tuple(role.value for role in (Role.EW, Role.AW, Role.CS))

_SHORT = (1, 20)
_LONG = (100, 250)


def make_prompts(
    rng: random.Random, count: int, vocab: int, new_tokens: int, temperature: float = 0.0
) -> list[Prompt]:
    """Random prompts with answers of different lengths: streams begin and end all the time.

    Every fourth prompt is long, so that faults meet prefills as well. With a temperature each has a
    seed: however often it is asked, the answer is the same.
    """
    lengths = [rng.randint(*(_LONG if n % 4 == 0 else _SHORT)) for n in range(count)]
    return [
        Prompt(
            [rng.randrange(3, vocab) for _ in range(length)],
            rng.randint(new_tokens // 2, new_tokens + new_tokens // 2),
            temperature,
            number if temperature else None,
        )
        for number, length in enumerate(lengths)
    ]


def service_config(
    model: str, role: str, streams: int, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """The service whose workers of this role are hit. Raises ConfigError if it cannot be."""
    config: dict[str, Any] = {
        "model": {"path": model, "dtype": "float32"},
        "attention": {"workers": 2, "max_num_seqs": max(8, streams), "kv_cache": "256MiB"},
        "experts": {"workers": 2, "shadows": 1},
        "gateway": {"port": 0},
        # Workers are killed on purpose here, more often than a crash loop would be forgiven.
        "cluster": {"max_restarts": 1_000_000},
    }
    if role != Role.EW:
        # Of three AWs one may be lost during the failover of another. Tiny models compute so fast
        # that hardly anything would be restored if that were decided by what is faster.
        more = {"attention": {"workers": 3}, "checkpoint": {"stores": 1, "restore": "always"}}
        config = merged(config, more)
    config = merged(config, overrides)
    load_config(config)
    return config


def worker_names(config: Mapping[str, Any]) -> list[str]:
    """The workers of this service."""
    read = load_config(dict(config))
    counts = {
        Role.AW: read.attention.workers,
        Role.EW: read.experts.workers,
        Role.CS: read.checkpoint.stores,
    }
    return [worker_id(role, number) for role, count in counts.items() for number in range(count)]


def on_hosts(config: dict[str, Any], hosts: Hosts) -> dict[str, Any]:
    """The same service with each worker on the host of its name, joined by TCP."""
    spread = {
        "transport": {"kind": "tcp", "interface": hosts.block},
        "cluster": {"prefix": {name: hosts.prefix(name) for name in worker_names(config)}},
    }
    return merged(config, spread)


def read_also(text: str | None, role: str) -> Also | None:
    """`ROLE=SHARE`, or `ROLE` for always. Raises UserError."""
    if text is None:
        return None
    other, equals, share = text.partition("=")
    others = [r for r in ROLES if r != role]
    if other not in others:
        raise UserError(f"--also: {other!r} is not one of {', '.join(others)}")
    try:
        also = Also(other, float(share) if equals else 1.0)
    except ValueError:
        also = Also(other, -1.0)
    if not 0 <= also.share <= 1:
        raise UserError(f"--also {text}: expected ROLE=SHARE with a share from 0 to 1")
    return also
