"""What being ready for failures costs while there are none (paper §7.3).

The same service twice, measured in turn so that drift of the machine cancels: `on` with a shadow of
every expert, probes, hedging and fork servers, `off` without any of that. 10 tokens in, 64 out.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tarragon_hpc.bench.service import serving
from tarragon_hpc.bench.steady import time_service
from tarragon_hpc.models.describe import describe

ON: dict[str, Any] = {"experts": {"shadows": 1}}
_NEVER_MS = 1_000_000
OFF: dict[str, Any] = {
    "experts": {"shadows": 0},
    "detection": {
        "probe_ms": _NEVER_MS,
        "hedge_floor_ms": _NEVER_MS,
        "hedge_ceiling_ms": _NEVER_MS,
    },
    "cluster": {"fork_server": False},
}
SYSTEMS = {"on": ON, "off": OFF}


def run(
    model: str,
    *,
    batches: tuple[int, ...] = (8, 32),
    rounds: int = 10,
    prompt_tokens: int = 10,
    new_tokens: int = 64,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure and print; returns {"summary": {"on_vs_off_8": …}, …}: medians of ratios by round."""
    console = console or Console()
    spec = describe(model)
    rng = random.Random(0)
    prompts = [
        [rng.randrange(3, spec.vocab) for _ in range(prompt_tokens)] for _ in range(max(batches))
    ]
    speeds: dict[tuple[str, int], list[float]] = {(s, b): [] for s in SYSTEMS for b in batches}
    with (
        tempfile.TemporaryDirectory(prefix="tarragon-overhead-") as scratch,
        serving(_config(model, ON), Path(scratch) / "on") as on,
        serving(_config(model, OFF), Path(scratch) / "off") as off,
    ):
        services = {"on": on, "off": off}
        for number in range(-1, rounds):
            for batch in batches:
                # In turns, so that neither always follows the other.
                for system in sorted(SYSTEMS, reverse=bool(number % 2)):
                    speed = time_service(services[system], prompts[:batch], new_tokens)
                    if number >= 0:  # the first round warms up
                        speeds[system, batch].append(speed)
    result = summarize(speeds, batches)
    console.print(_table(result, batches))
    return result


def summarize(
    speeds: dict[tuple[str, int], list[float]], batches: tuple[int, ...]
) -> dict[str, Any]:
    """Medians and spread of tokens/s, and the ratios of the rounds."""
    summary: dict[str, float] = {}
    ratios: dict[str, list[float]] = {}
    for batch in batches:
        pairs = zip(speeds["on", batch], speeds["off", batch], strict=True)
        ratios[str(batch)] = [on / off for on, off in pairs]
        summary[f"on_vs_off_{batch}"] = statistics.median(ratios[str(batch)])
    systems = {
        f"{system}_{batch}": {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
        }
        for (system, batch), values in speeds.items()
    }
    return {"summary": summary, "tokens_per_s": systems, "ratios": ratios}


def _config(model: str, sections: dict[str, Any]) -> dict[str, Any]:
    return {"model": {"path": model}, "gateway": {"port": 0}, **sections}


def _table(result: dict[str, Any], batches: tuple[int, ...]) -> Table:
    table = Table(title="Ready for failures, or not: tokens/s (median, min … max)")
    table.add_column("")
    for batch in batches:
        table.add_column(f"{batch} at once", justify="right")
    for system in SYSTEMS:
        values = [result["tokens_per_s"][f"{system}_{batch}"] for batch in batches]
        cells = [f"{v['median']:.0f} ({v['min']:.0f} … {v['max']:.0f})" for v in values]
        table.add_row(system, *cells)
    ratios = [result["ratios"][str(batch)] for batch in batches]
    cells = [f"{statistics.median(r):.3f}× ({min(r):.2f} … {max(r):.2f})" for r in ratios]
    table.add_row("on / off", *cells)
    return table
