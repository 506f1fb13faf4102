"""What it takes to go on with a request whose AW has died, by how far it had come (paper Fig. 12).

One request at a time on an otherwise idle service with two AWs; when it has so many tokens its AW
is killed and the other one goes on. Three strategies:

`ours`: the KV comes from a checkpoint store; one token is computed.
`parallel` replay: there are no stores, so the other AW computes the KV of the prompt and of all
tokens at once, as one prefill.
`sequential` replay: the other AW generates all tokens anew, one by one. Nobody would do that here,
so it is not: what it would take is what generating as many tokens for a prompt of the same length
takes, from the request to the next token. That run has no failure, so it is not slowed down by the
successor of the dead AW, which starts on the same CPUs while the other strategies are at work.

Time: from the moment the AW gets the request until its next token (noticing the death is not in
it). Bytes: for ours, what came from the store; for the others, what went between AW and EWs, both
ways, prompt and generated tokens. CPU: of that AW and all EWs, until the client has the next token.

Every request has a prompt of its own: no prefix cache helps.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tarragon_hpc.bench.checkpoint import check_png
from tarragon_hpc.bench.restore_report import as_table, summarize
from tarragon_hpc.bench.restore_run import SPARE, Place, lose, replay
from tarragon_hpc.bench.service import serving
from tarragon_hpc.config import load_config, merged
from tarragon_hpc.errors import UserError
from tarragon_hpc.models.describe import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tarragon_hpc.bench.restore_report import Sample
    from tarragon_hpc.bench.service import Service

POINTS = (16, 64, 256, 1024)


def run(
    model: str,
    *,
    points: Sequence[int] = POINTS,
    repeats: int = 5,
    prompt_tokens: int = 32,
    seed: int = 0,
    png: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure and print; returns {"summary": {"flat": …}, …}: of medians.

    points: how many tokens there are when the AW dies. Raises UserError for what is not allowed,
    before anything starts.
    """
    console = console or Console()
    check_png(png)
    points = sorted(set(points))
    configs = services(model, overrides or {})
    for config in configs.values():
        load_config(config)
    spec = describe(model)
    longest = prompt_tokens + points[-1] + SPARE
    if points[0] < 1 or longest > spec.max_len:
        most = spec.max_len - prompt_tokens - SPARE
        raise UserError(f"--points {points[0]}…{points[-1]}: allowed are 1 to {most}")
    rng = random.Random(seed)

    def prompt() -> list[int]:
        return [rng.randrange(3, spec.vocab) for _ in range(prompt_tokens)]

    def say(sample: Sample) -> None:
        console.print(
            f"{sample.strategy} at {sample.point}: {sample.seconds * 1e3:.1f} ms,"
            f" {sample.computed} tokens computed",
            highlight=False,
        )

    with (
        tempfile.TemporaryDirectory(prefix="tarragon-restore-") as scratch,
        serving(configs["ours"], Path(scratch) / "ours") as ours,
        serving(configs["replay"], Path(scratch) / "replay") as other,
    ):
        samples = asyncio.run(_measure(ours, other, points, repeats, prompt, say))
    result = summarize(samples, points)
    result["options"] = {
        "points": points, "repeats": repeats, "prompt_tokens": prompt_tokens, "seed": seed,
    }  # fmt: skip
    result["samples"] = [asdict(sample) for sample in samples]
    console.print(as_table(result, points))
    if png is not None:
        from tarragon_hpc.bench.restore_figure import draw

        draw(result, points, Path(png))
    return result


def services(model: str, overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The two services: with a store, and without any."""
    common = merged(
        {
            "model": {"path": model},
            "attention": {"workers": 2, "kv_cache": "256MiB"},
            "gateway": {"port": 0},
            "cluster": {"max_restarts": 1_000_000},
            "checkpoint": {"stores": 1, "memory": "256MiB", "restore": "always"},
        },
        overrides,
    )
    return {"ours": common, "replay": merged(common, {"checkpoint": {"stores": 0}})}


async def _measure(
    ours: Service,
    other: Service,
    points: Sequence[int],
    repeats: int,
    prompt: Callable[[], list[int]],
    say: Callable[[Sample], None],
) -> list[Sample]:
    """In turns, so that drift of the machine cancels; the first turn warms up."""
    samples: list[Sample] = []
    async with contextlib.AsyncExitStack() as stack:
        with_store = await stack.enter_async_context(Place.of(ours))
        without = await stack.enter_async_context(Place.of(other))
        for number in range(-1, repeats):
            for point in points if number >= 0 else points[:1]:
                found = [
                    await replay(without, "sequential", prompt, point),
                    await lose(without, "parallel", prompt, point),
                    await lose(with_store, "ours", prompt, point),
                ]
                if number >= 0:
                    samples += found
                    for sample in found:
                        say(sample)
    return samples
