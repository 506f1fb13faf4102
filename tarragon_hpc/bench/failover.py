"""Streams while workers die, stop or get slow, beside a restart of everything (paper §7.2, Fig. 9).

A real service with shadow experts is kept busy with a constant number of streams. First without
faults: that gives the right answers and the usual gaps. Then with faults at seeded random moments.
Last, in the same run, the coarse restart. In float32, greedy or with a seed per request: every
answer must be identical.

Where AWs or CSs are hit there are three AWs and a checkpoint store, from which everything is
restored, however little there is to compute: `checkpoint.restore` is "always".
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tarragon_hpc.bench import arrivals as ar
from tarragon_hpc.bench.aftermath import resumptions
from tarragon_hpc.bench.failover_report import Record, as_table, summarize
from tarragon_hpc.bench.failover_setup import (
    FAULTS,
    ROLES,
    make_prompts,
    on_hosts,
    read_also,
    service_config,
    worker_names,
)
from tarragon_hpc.bench.hosts import Hosts
from tarragon_hpc.bench.injection import Injected, inject
from tarragon_hpc.bench.load import Load
from tarragon_hpc.bench.restart import coarse_restart
from tarragon_hpc.bench.service import serving
from tarragon_hpc.cluster.faults import WIRE_FAULTS
from tarragon_hpc.cluster.rendezvous import TIMELINE
from tarragon_hpc.errors import UserError
from tarragon_hpc.models.describe import describe
from tarragon_hpc.observe.timeline import read_timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tarragon_hpc.bench.arrivals import Stream
    from tarragon_hpc.bench.injection import Also
    from tarragon_hpc.bench.load import Prompt
    from tarragon_hpc.bench.service import Service

_SETTLE_S = 2.0


def run(
    model: str,
    *,
    kill: str = "ew",
    count: int = 20,
    fault: str = "kill",
    streams: int = 16,
    seed: int = 0,
    overlap: float = 0.0,
    also: str | None = None,
    temperature: float = 0.0,
    new_tokens: int = 256,
    steady_s: float = 8.0,
    restart: bool = True,
    hosts: bool = False,
    png: str | None = None,
    overrides: dict[str, Any] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure and print; returns {"summary": {"gap_ms_p50": …}, …}, and draws `png` if wanted.

    kill: the role that is hit. fault: one kind, or several with commas. overlap: the share of
    faults that are followed by another before they are overcome. also: `ROLE=SHARE`, with this
    probability a worker of that role is killed together with the one that is hit. temperature: not
    0: sampling, with a seed for every prompt. hosts: every worker has a network namespace of its
    own, and they are joined by TCP. Raises UserError for what is not allowed, before anything
    starts.
    """
    kinds = _checked(kill, fault, hosts, png)
    too = read_also(also, kill)
    config = service_config(model, kill, streams, overrides or {})
    console = console or Console()
    spec = describe(model)
    rng = random.Random(seed)
    prompts = make_prompts(rng, 2 * streams, spec.vocab, new_tokens, temperature)

    def say(line: str) -> None:
        console.print(line, highlight=False)

    again = None
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="tarragon-failover-"))
        wires = stack.enter_context(Hosts(worker_names(config))) if hosts else None
        if wires is not None:
            config = on_hosts(config, wires)
        service = stack.enter_context(serving(config, Path(scratch) / "ours"))
        steady = asyncio.run(_steady(service, prompts, streams, steady_s))
        disturbed, injected = asyncio.run(
            _disturbed(
                service, prompts, streams, kill, kinds, count, rng, seed, overlap, too, wires, say
            )
        )
        resumed = resumptions(read_timeline(service.run_dir / TIMELINE))
        if restart:
            again = coarse_restart(service, config, Path(scratch) / "again", prompts[:streams])
    record = Record(steady, disturbed, ar.answers(steady), injected.all, again, kill, resumed)
    result = summarize(record)
    result["problem"] = injected.problem
    result["options"] = {
        "kill": kill, "fault": fault, "streams": streams, "seed": seed, "new_tokens": new_tokens,
        "overlap": overlap, "also": also, "temperature": temperature, "hosts": hosts,
    }  # fmt: skip
    console.print(as_table(result))
    if injected.problem is not None:
        say(f"ended early: {injected.problem}")
    if png is not None:
        from tarragon_hpc.bench.figure import draw

        draw(record, Path(png))
    return result


async def _steady(
    service: Service, prompts: list[Prompt], streams: int, steady_s: float
) -> list[Stream]:
    """Every prompt once to warm up, then again and again for `steady_s` seconds."""
    warm = Load(service.endpoint, prompts, streams)
    await warm.once(range(len(prompts)))
    load = Load(service.endpoint, prompts, streams)
    running = asyncio.create_task(load.run())
    await asyncio.sleep(steady_s)
    while len(ar.answers(load.all)) < len(prompts) and not running.done():
        await asyncio.sleep(0.1)
        if any(s.error for s in load.all):
            break
    load.end()
    await running
    return load.all


async def _disturbed(
    service: Service,
    prompts: list[Prompt],
    streams: int,
    role: str,
    kinds: Sequence[str],
    count: int,
    rng: random.Random,
    seed: int,
    overlap: float,
    also: Also | None,
    wires: Hosts | None,
    say: Callable[[str], None],
) -> tuple[list[Stream], Injected]:
    if not count:
        return [], Injected()
    load = Load(service.endpoint, prompts, streams)
    running = asyncio.create_task(load.run())
    try:
        await asyncio.sleep(_SETTLE_S)
        injected = await inject(
            service.run_dir,
            role=role,
            faults=kinds,
            count=count,
            rng=rng,
            seed=seed,
            say=say,
            overlap=overlap,
            also=also,
            wires=wires,
        )
        await asyncio.sleep(_SETTLE_S)
    finally:
        load.end()
        await running
    return load.all, injected


def _checked(role: str, fault: str, hosts: bool, png: str | None) -> list[str]:
    """The kinds of faults."""
    kinds = [kind.strip() for kind in fault.split(",")]
    for option, value, allowed in [
        ("--kill", role, ROLES),
        *(("--fault", kind, FAULTS) for kind in kinds),
    ]:
        if value not in allowed:
            raise UserError(f"{option}: {value!r} is not one of {', '.join(allowed)}")
    if not hosts and (wired := [kind for kind in kinds if kind in WIRE_FAULTS]):
        raise UserError(f"--fault {wired[0]}: needs --hosts")
    if png is not None:
        if find_spec("matplotlib") is None:
            raise UserError(f"--png {png}: needs matplotlib, which is not installed")
        if not Path(png).absolute().parent.is_dir():
            raise UserError(f"--png {png}: the folder does not exist")
    return kinds
