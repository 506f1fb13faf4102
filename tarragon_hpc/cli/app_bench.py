"""The `tarragon bench` commands and their options; what they do is in tarragon_hpc/bench/."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

bench_app = typer.Typer(no_args_is_help=True, help="Measure; every bench prints a table.")

JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers here as JSON.")
]
Model = Annotated[
    Path | None, typer.Option(help="Checkpoint; default: one of the bench preset is made.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the service."),
]


@bench_app.command("datapath")
def bench_datapath(
    transport: Annotated[str, typer.Option(help="shm, tcp or rdma.")] = "shm",
    rounds: Annotated[int | None, typer.Option(min=1, help="Default: 30.")] = None,
    json: JsonFile = None,
) -> None:
    """A call of expert_io against an echo EW, beside a raw ping-pong over the same medium."""
    from tarragon_hpc.cli.bench import bench

    bench("datapath", json, transport=transport, rounds=rounds)


@bench_app.command("steady")
def bench_steady(
    model: Model = None,
    attention_workers: Annotated[int | None, typer.Option(min=1, help="Default: 2.")] = None,
    expert_workers: Annotated[int | None, typer.Option(min=1, help="Default: 2.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Default: 5, after a warm-up.")] = None,
    json: JsonFile = None,
) -> None:
    """Throughput of the whole service against plain vLLM on the same cores."""
    from tarragon_hpc.cli.bench import steady

    steady(
        json, model, attention_workers=attention_workers, expert_workers=expert_workers,
        rounds=rounds,
    )  # fmt: skip


@bench_app.command("overhead")
def bench_overhead(
    model: Model = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Default: 10, after a warm-up.")] = None,
    json: JsonFile = None,
) -> None:
    """What being ready for failures costs while there are none."""
    from tarragon_hpc.cli.bench import overhead

    overhead(json, model, rounds=rounds)


@bench_app.command("experts")
def bench_experts(
    hidden: Annotated[int | None, typer.Option(min=32, help="Default: 1024.")] = None,
    ffn: Annotated[int | None, typer.Option(min=32, help="Default: 2048.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: 1.")] = None,
    json: JsonFile = None,
) -> None:
    """The expert FFN kernel against vLLM's and torch's, by number of rows."""
    from tarragon_hpc.cli.bench import bench

    bench("experts", json, hidden=hidden, ffn=ffn, threads=threads)


@bench_app.command("failover")
def bench_failover(
    kill: Annotated[str, typer.Option(help="Role that is hit: ew, aw or cs.")] = "ew",
    count: Annotated[int | None, typer.Option(min=0, help="Faults; default: 20.")] = None,
    fault: Annotated[
        str | None,
        typer.Option(
            help="kill, stop, slow, cut or silence, or several with commas; default: kill."
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint; default: a tiny one is made.")
    ] = None,
    streams: Annotated[int | None, typer.Option(min=1, help="At once; default: 16.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of prompts and faults; default: 0.")] = None,
    overlap: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of faults during which the next one strikes."),
    ] = None,
    also: Annotated[
        str | None,
        typer.Option(metavar="ROLE=SHARE", help="Kill one of these too, with this probability."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sampled, with a seed per request; default: 0.")
    ] = None,
    restart: Annotated[bool, typer.Option(help="Measure a full restart too.")] = True,
    hosts: Annotated[
        bool,
        typer.Option("--hosts", help="Workers in network namespaces, over TCP; needs root."),
    ] = False,
    overrides: Overrides = None,
    json: JsonFile = None,
    png: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw gaps and throughput over time.")
    ] = None,
) -> None:
    """Streams while workers fail, against the answers without failures and a full restart."""
    from tarragon_hpc.cli.bench import failover, read_overrides

    failover(
        json, model, kill=kill, count=count, fault=fault, streams=streams, seed=seed,
        overlap=overlap, also=also, temperature=temperature, restart=restart,
        hosts=hosts, png=png, overrides=read_overrides(overrides),
    )  # fmt: skip


@bench_app.command("checkpoint")
def bench_checkpoint(
    model: Model = None,
    batch: Annotated[int | None, typer.Option(min=1, help="At once; default: 16.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Default: 10, after a warm-up.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Default: 10.")] = None,
    new_tokens: Annotated[int | None, typer.Option(min=1, help="Default: 64.")] = None,
    pause_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between two pauses to copy; default: 8.")
    ] = None,
    checksums: Annotated[bool, typer.Option(help="Measure what they cost, too.")] = True,
    stall: Annotated[
        float | None,
        typer.Option(min=1, metavar="SECONDS", help="Stop a store for so long, under load."),
    ] = None,
    overrides: Overrides = None,
    json: JsonFile = None,
    png: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw an AW's traffic over some steps.")
    ] = None,
) -> None:
    """What keeping the KV of all requests in a store costs, against pausing and against nothing."""
    from tarragon_hpc.cli.bench import checkpoint, read_overrides

    checkpoint(
        json, model, batch=batch, rounds=rounds, prompt_tokens=prompt_tokens,
        new_tokens=new_tokens, pause_every=pause_every, checksums=checksums, stall_s=stall,
        png=png, overrides=read_overrides(overrides),
    )  # fmt: skip


@bench_app.command("restore")
def bench_restore(
    model: Model = None,
    points: Annotated[
        str | None,
        typer.Option(help="Tokens there are when the AW dies; default: 16,64,256,1024."),
    ] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Of each; default: 5.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the prompts; default: 0.")] = None,
    overrides: Overrides = None,
    json: JsonFile = None,
    png: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw time, bytes and CPU.")
    ] = None,
) -> None:
    """Going on with a request after the death of its AW, against computing everything anew."""
    from tarragon_hpc.cli.bench import read_overrides, read_points, restore

    restore(
        json, model, points=read_points(points), repeats=repeats, seed=seed, png=png,
        overrides=read_overrides(overrides),
    )  # fmt: skip


@bench_app.command("rendezvous")
def bench_rendezvous(
    workers: Annotated[int | None, typer.Option(min=1, help="Default: 1000.")] = None,
    early: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share that begins before the head; default: 0.1."),
    ] = None,
    directory: Annotated[
        str | None, typer.Option(help="On the filesystem to measure; default: a temporary one.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Many simulated workers through one run directory: filesystem operations and time."""
    from tarragon_hpc.cli.bench import bench

    bench("rendezvous", json, workers=workers, early=early, directory=directory)
