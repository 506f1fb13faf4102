"""Throughput without failures: ours against plain vLLM on the same cores (paper §7.3, Fig. 11).

Three systems, up all the time, measured in turn so that drift of the machine cancels: `ours` (the
whole service over HTTP), `dp` (as many plain vLLM engines as we have AWs, each with its share of
the CPUs), `single` (one plain vLLM on all CPUs). 10 tokens in, 64 out, greedy, all at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from rich.console import Console
from rich.table import Table

from tarragon_hpc.bench.service import Service, serving
from tarragon_hpc.models.describe import describe

if TYPE_CHECKING:
    from collections.abc import Iterator

Prompts = list[list[int]]

# Before each measurement: the threads of the system before it spin for up to 0.2 s (OpenMP).
_SETTLE_S = 0.5


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed round."""

    system: str
    batch: int
    tokens_per_s: float


class PlainEngine:
    """A plain vLLM process (attention/plain.py) on some CPUs."""

    def __init__(self, model: str, dtype: str, cpus: list[int], log: Path) -> None:
        command = [sys.executable, "-m", "tarragon_hpc.attention.plain", model, "--dtype", dtype]
        command += ["--cpus", ",".join(map(str, cpus))]
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def wait_ready(self) -> None:
        """Block until the engine is built."""
        self.result()

    def start(self, prompts: Prompts, new_tokens: int) -> None:
        """Hand over a batch; `result` waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": new_tokens}) + "\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """The next answer of the process."""
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def run(
    model: str,
    *,
    attention_workers: int = 2,
    expert_workers: int = 2,
    batches: tuple[int, ...] = (8, 32),
    rounds: int = 5,
    prompt_tokens: int = 10,
    new_tokens: int = 64,
    overrides: dict[str, Any] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure and print; returns {"summary": {"vs_dp_8": …}, "samples": […], …}."""
    console = console or Console()
    spec = describe(model)
    rng = random.Random(0)
    prompts = [
        [rng.randrange(3, spec.vocab) for _ in range(prompt_tokens)] for _ in range(max(batches))
    ]
    config: dict[str, Any] = {
        "model": {"path": model},
        "attention": {"workers": attention_workers},
        "experts": {"workers": expert_workers},
        "gateway": {"port": 0},
    }
    for section, values in (overrides or {}).items():
        config.setdefault(section, {}).update(values)
    samples: list[Sample] = []
    with (
        tempfile.TemporaryDirectory(prefix="tarragon-steady-") as scratch,
        _plain(model, spec.dtype, _shares(attention_workers), Path(scratch), "dp") as dp,
        _plain(model, spec.dtype, _shares(1), Path(scratch), "single") as single,
        serving(config, Path(scratch) / "ours") as ours,
    ):
        for round_number in range(-1, rounds):
            for batch in batches:
                speeds = {
                    "ours": time_service(ours, prompts[:batch], new_tokens),
                    "dp": _time_plain(dp, prompts[:batch], new_tokens),
                    "single": _time_plain(single, prompts[:batch], new_tokens),
                }
                if round_number >= 0:  # the first one warms up
                    samples += [Sample(s, batch, v) for s, v in speeds.items()]
        status = ours.status()
    result = summarize(samples, batches)
    result["status"] = status
    _print(result, batches, console)
    return result


def summarize(samples: list[Sample], batches: tuple[int, ...]) -> dict[str, Any]:
    """Medians, spread and the ratios round by round (their medians are the summary)."""
    summary: dict[str, float] = {}
    systems: dict[str, Any] = {}
    for batch in batches:
        speeds = {
            system: [s.tokens_per_s for s in samples if s.system == system and s.batch == batch]
            for system in ("ours", "dp", "single")
        }
        for system, values in speeds.items():
            systems[f"{system}_{batch}"] = {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
            }
        for other in ("dp", "single"):
            ratios = [a / b for a, b in zip(speeds["ours"], speeds[other], strict=True)]
            summary[f"vs_{other}_{batch}"] = statistics.median(ratios)
    return {"summary": summary, "tokens_per_s": systems}


def _shares(n: int) -> list[list[int]]:
    """The CPUs we may use, dealt out to n engines."""
    cpus = sorted(os.sched_getaffinity(0))
    size = max(1, len(cpus) // n)
    return [cpus[i * size % len(cpus) :][:size] for i in range(n)] if n > 1 else [cpus]


@contextlib.contextmanager
def _plain(
    model: str, dtype: str, shares: list[list[int]], scratch: Path, name: str
) -> Iterator[list[PlainEngine]]:
    engines = [
        PlainEngine(model, dtype, cpus, scratch / f"{name}{i}.log") for i, cpus in enumerate(shares)
    ]
    try:
        for engine in engines:
            engine.wait_ready()
        yield engines
    finally:
        for engine in engines:
            engine.close()


def _time_plain(engines: list[PlainEngine], prompts: Prompts, new_tokens: int) -> float:
    time.sleep(_SETTLE_S)
    start = time.perf_counter()
    for i, engine in enumerate(engines):
        engine.start(prompts[i :: len(engines)], new_tokens)
    tokens = sum(engine.result()["tokens"] for engine in engines)
    return float(tokens / (time.perf_counter() - start))


def time_service(service: Service, prompts: Prompts, new_tokens: int) -> float:
    """Tokens per second of a service that is asked all prompts at once."""
    time.sleep(_SETTLE_S)
    return asyncio.run(_post_all(service, prompts, new_tokens))


async def _post_all(service: Service, prompts: Prompts, new_tokens: int) -> float:
    limits = httpx.Limits(max_connections=len(prompts))
    async with httpx.AsyncClient(limits=limits, timeout=600) as client:
        model = (await client.get(f"{service.endpoint}/models")).json()["data"][0]["id"]

        async def one(ids: list[int]) -> int:
            body = {
                "model": model,
                "prompt": ids,
                "max_tokens": new_tokens,
                "temperature": 0,
                "ignore_eos": True,
            }
            answer = await client.post(f"{service.endpoint}/completions", json=body)
            answer.raise_for_status()
            return int(answer.json()["usage"]["completion_tokens"])

        start = time.perf_counter()
        tokens = sum(await asyncio.gather(*(one(ids) for ids in prompts)))
        return tokens / (time.perf_counter() - start)


def _print(result: dict[str, Any], batches: tuple[int, ...], console: Console) -> None:
    table = Table(title="Steady state, tokens/s (median, min … max)")
    table.add_column("system")
    for batch in batches:
        table.add_column(f"{batch} at once", justify="right")
    for system in ("ours", "dp", "single"):
        cells = []
        for batch in batches:
            value = result["tokens_per_s"][f"{system}_{batch}"]
            cells.append(f"{value['median']:.0f} ({value['min']:.0f} … {value['max']:.0f})")
        table.add_row(system, *cells)
    for other in ("dp", "single"):
        cells = [f"{result['summary'][f'vs_{other}_{b}']:.2f}×" for b in batches]
        table.add_row(f"ours / {other}", *cells)
    console.print(table)
