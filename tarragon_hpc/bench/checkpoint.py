"""What it costs to keep the KV of all requests in checkpoint stores (paper §7.4).

The same service several times, all of them up, measured in turn so that drift of the machine
cancels: `none` without stores; `ours`; `pause`, which stops every so many steps, copies the whole
KV of all running sequences and waits for the stores; and `unsummed`, ours without checksums. Then,
in a run of its own, the traffic of AWs over time, and, if wanted, a store that is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tarragon_hpc.bench import pattern
from tarragon_hpc.bench.checkpoint_report import as_table, summarize
from tarragon_hpc.bench.load import Prompt
from tarragon_hpc.bench.service import serving
from tarragon_hpc.bench.stall import stall
from tarragon_hpc.bench.steady import time_service
from tarragon_hpc.config import load_config, merged
from tarragon_hpc.errors import UserError
from tarragon_hpc.models.describe import describe
from tarragon_hpc.observe.trace import TRACE, read_traces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tarragon_hpc.bench.pattern import Pattern
    from tarragon_hpc.bench.service import Service
    from tarragon_hpc.bench.stall import Stall

_TRACED_TOKENS = 128
_STALLED_TOKENS = 256


def run(
    model: str,
    *,
    batch: int = 16,
    rounds: int = 10,
    prompt_tokens: int = 10,
    new_tokens: int = 64,
    pause_every: int = 8,
    checksums: bool = True,
    stall_s: float | None = None,
    png: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure and print; returns {"summary": {"ours_vs_none": …}, …}: medians of ratios by round.

    checksums: measure what they cost, too. stall_s: stop a store for so long under load. png: draw
    the traffic. Raises UserError for what is not allowed, before anything starts.
    """
    console = console or Console()
    check_png(png)
    configs = systems(model, batch, pause_every, overrides or {})
    if not checksums:
        del configs["unsummed"]
    for config in configs.values():
        load_config(config)
    spec = describe(model)
    rng = random.Random(0)
    prompts = [[rng.randrange(3, spec.vocab) for _ in range(prompt_tokens)] for _ in range(batch)]
    with tempfile.TemporaryDirectory(prefix="tarragon-checkpoint-") as scratch:
        speeds, kept = _speeds(configs, Path(scratch), prompts, new_tokens, rounds)
        traffic = _traffic(
            configs["ours"], Path(scratch) / "traced", prompts, len(spec.moe_layers), png
        )
        stalled = None
        if stall_s is not None:
            asked = [Prompt(prompt, _STALLED_TOKENS) for prompt in prompts]
            stalled = _stalled(configs["ours"], Path(scratch) / "stalled", asked, stall_s)
    result = summarize(speeds, kept, traffic, stalled)
    result["options"] = {
        "batch": batch, "rounds": rounds, "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens, "pause_every": pause_every, "stall_s": stall_s,
    }  # fmt: skip
    if stalled is not None:
        result["stall"] = asdict(stalled)
    console.print(as_table(result))
    return result


def systems(
    model: str, batch: int, pause_every: int, overrides: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The configurations of the contestants."""
    common = merged(
        {
            "model": {"path": model},
            "attention": {"kv_cache": "256MiB", "max_num_seqs": batch},
            "gateway": {"port": 0},
            "checkpoint": {"stores": 1, "memory": "256MiB"},
        },
        overrides,
    )
    changes: dict[str, dict[str, Any]] = {
        "none": {"stores": 0},
        "ours": {},
        "pause": {"pause_every": pause_every},
        "unsummed": {"checksums": False},
    }
    return {name: merged(common, {"checkpoint": change}) for name, change in changes.items()}


def check_png(png: str | None) -> None:
    """Raises UserError if such a picture cannot be drawn."""
    if png is None:
        return
    if find_spec("matplotlib") is None:
        raise UserError(f"--png {png}: needs matplotlib, which is not installed")
    if not Path(png).absolute().parent.is_dir():
        raise UserError(f"--png {png}: the folder does not exist")


def _speeds(
    configs: dict[str, dict[str, Any]],
    scratch: Path,
    prompts: list[list[int]],
    new_tokens: int,
    rounds: int,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Tokens per second by system and round; and what `ours` says of its stores in the end."""
    speeds: dict[str, list[float]] = {name: [] for name in configs}
    order = list(configs)
    with contextlib.ExitStack() as running:
        services = {
            name: running.enter_context(serving(config, scratch / name))
            for name, config in configs.items()
        }
        for number in range(-1, rounds):
            order.append(order.pop(0))  # none of them always follows the same other one
            for name in order:
                speed = time_service(services[name], prompts, new_tokens)
                if number >= 0:  # the first round warms up
                    speeds[name].append(speed)
        kept = _totals(services["ours"])
    return speeds, kept


def _totals(service: Service) -> dict[str, float]:
    """The checkpoint counters of all AWs and CSs."""
    totals: dict[str, float] = {}
    for worker in service.status()["workers"]:
        for name, value in worker["stats"].items():
            if name.startswith("kv_") and worker["role"] != "ew":
                key = f"{worker['role']}_{name}"
                totals[key] = totals.get(key, 0.0) + value
    return totals


def _traffic(
    config: dict[str, Any], directory: Path, prompts: list[list[int]], layers: int, png: str | None
) -> Pattern:
    """What AWs exchange with EWs and stores while they answer these prompts."""
    folder = directory / "traces"
    with serving(config, directory, env={TRACE: str(folder)}) as service:
        time_service(service, prompts, _TRACED_TOKENS)
    traces = read_traces(folder)
    if png is not None and traces:
        pattern.draw(max(traces, key=lambda trace: len(trace.calls)), layers, Path(png))
    return pattern.measure(traces)


def _stalled(
    config: dict[str, Any], directory: Path, prompts: list[Prompt], seconds: float
) -> Stall:
    # The head would replace a store that says nothing for so long.
    patient = merged(config, {"detection": {"stopped_grace_s": 10 * seconds + 60}})
    with serving(patient, directory) as service:
        return asyncio.run(stall(service, prompts, seconds))
