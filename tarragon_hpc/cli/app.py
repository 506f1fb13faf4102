"""The commands and their options; what they do is in the modules beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tarragon_hpc import __version__
from tarragon_hpc.cli.app_bench import bench_app
from tarragon_hpc.cli.app_jobs import (
    ConfigFile,
    Fragile,
    Overrides,
    Root,
    Run,
    RunDir,
    Site,
    Wait,
)
from tarragon_hpc.cli.app_jobs import add_to as add_jobs
from tarragon_hpc.cli.app_runs import Json
from tarragon_hpc.cli.app_runs import add_to as add_runs

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="MoE inference in which the death of a worker is a blip, not an outage.",
)
model_app = typer.Typer(no_args_is_help=True, help="Make checkpoints to try things with.")
app.add_typer(model_app, name="model")
app.add_typer(bench_app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tarragon {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and end.")
    ] = False,
) -> None:
    """What holds for all commands."""


@app.command()
def doctor(
    what: Annotated[
        list[str] | None, typer.Argument(metavar="[WHAT]...", help="Only these lines, e.g. rdma.")
    ] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Only, and more, of Slurm.")] = False,
    nodes: Annotated[
        int | None,
        typer.Option(min=2, max=2, help="Run a job on 2 nodes that tries the run directory."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Of the job: a configuration's cluster.slurm.")
    ] = None,
    site: Site = None,
    overrides: Overrides = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Report what this machine can run: native module, vLLM, GPUs, RDMA, networks, files, Slurm.

    `doctor slurm --nodes 2` looks at a cluster: is the run directory seen alike by its nodes?
    """
    from tarragon_hpc.cli.doctor import as_json, examine, show

    where = str(root) if root else None
    if slurm or nodes or what == ["slurm"]:
        from tarragon_hpc.cli.doctor_slurm import examine_slurm

        findings = examine_slurm(
            what or (), config, overrides or (), where, site=site, job=bool(nodes)
        )
    else:
        findings = examine(what or (), root=where)
    if json:
        print(as_json(findings))
    else:
        show(findings)


@model_app.command("tiny")
def model_tiny(
    family: Annotated[
        str, typer.Argument(help="mixtral, qwen3-moe, deepseek-v2, deepseek-v3 or gpt-oss.")
    ],
    directory: Annotated[Path, typer.Argument(help="New or empty directory.")],
    preset: Annotated[str, typer.Option(help="tiny, or bench: ~430 M parameters.")] = "tiny",
    seed: Annotated[int, typer.Option(help="Seed of the weights.", min=0)] = 0,
    layers: Annotated[int | None, typer.Option(help="Transformer layers.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Model width.")] = None,
    ffn: Annotated[int | None, typer.Option(help="Inner width of an expert.")] = None,
    experts: Annotated[int | None, typer.Option(help="Experts per layer.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts per token.")] = None,
    vocab: Annotated[int | None, typer.Option(help="Vocabulary size.")] = None,
    max_len: Annotated[int | None, typer.Option(help="Context length.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
) -> None:
    """Write a checkpoint of random weights, with a working tokenizer and chat template."""
    from tarragon_hpc.models.tiny import write_tiny

    path = write_tiny(
        family, directory, seed=seed, preset=preset, layers=layers, hidden=hidden, ffn=ffn,
        experts=experts, top_k=top_k, vocab=vocab, max_len=max_len, dtype=dtype,
    )  # fmt: skip
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f"{path}: {family}, {size / 1e6:.1f} MB")


@app.command()
def serve(
    config: ConfigFile = None,
    run_dir: RunDir = None,
    site: Site = None,
    wait: Wait = False,
    allow_fragile: Fragile = False,
    overrides: Overrides = None,
) -> None:
    """Serve a model, in the foreground; with `cluster.backend: slurm` as a job, which is submitted.

    Prints `ready: http://HOST:PORT/v1` when it serves. SIGINT or SIGTERM lets running requests
    finish and ends the run; a second one does not wait. A job is ended by `tarragon stop`.
    """
    from tarragon_hpc.cli.serve import serve as command

    status = command(
        config, overrides or (), run_dir, site=site, wait=wait, allow_fragile=allow_fragile
    )
    raise typer.Exit(status)


@app.command()
def generate(
    source: Annotated[
        str, typer.Option("--input", "-i", metavar="FILE", help="Requests as JSON lines; or URL.")
    ],
    target: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Results; continued if there.")
    ],
    config: ConfigFile = None,
    run_dir: RunDir = None,
    site: Site = None,
    wait: Wait = False,
    allow_fragile: Fragile = False,
    overrides: Overrides = None,
    chaos: Annotated[
        str | None,
        typer.Option(
            metavar="FAULT:WORKER,…", help="Faults on the way, such as kill:ew1,kill:aw0."
        ),
    ] = None,
) -> None:
    """Answer a file of requests and end: OpenAI batch lines, or {"prompt": …} lines.

    Results are written as they come. A second call with the same files does what is left. With
    `cluster.backend: slurm` it is a job, which is submitted.
    """
    from tarragon_hpc.cli.batch import generate as command

    status = command(
        config, overrides or (), source, target, run_dir, chaos,
        site=site, wait=wait, allow_fragile=allow_fragile,
    )  # fmt: skip
    raise typer.Exit(status)


@app.command()
def coverage(run: Run = None, root: Root = None, json: Json = False) -> None:
    """Say which failures a run takes without a pause, and which it would not."""
    from tarragon_hpc.cli.scale import coverage as command

    command(run, root, as_json=json)


@app.command()
def scale(
    words: Annotated[
        list[str], typer.Argument(metavar="[RUN] ROLE=COUNT...", help="Such as ew=3 aw=2 cs=1.")
    ],
    root: Root = None,
) -> None:
    """Change how many workers a serving run has."""
    from tarragon_hpc.cli.scale import scale as command

    command(words, root)


@app.command()
def chaos(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] FAULT WORKER", help="FAULT: kill, stop, cont or slow; or use --mtbf."
        ),
    ] = None,
    mtbf: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="SECONDS", help="Faults at random, so far apart."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what --mtbf does.")] = 0,
    faults: Annotated[str, typer.Option(help="Kinds of faults of --mtbf.")] = "kill,stop,slow",
    roles: Annotated[str, typer.Option(help="Whom --mtbf hits, of ew,aw,cs.")] = "ew",
    duration: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="End of --mtbf; default: none.")
    ] = None,
    factor: Annotated[
        float, typer.Option(min=1.1, max=1000, help="A slow worker has 1/FACTOR of its time.")
    ] = 10.0,
    for_: Annotated[
        float, typer.Option("--for", min=0, metavar="SECONDS", help="Length of one slow.")
    ] = 5.0,
    root: Root = None,
) -> None:
    """Kill, stop or slow down workers of a run of this host, on purpose.

    Every fault goes into chaos.jsonl in the run directory, and into the run's timeline.
    """
    from tarragon_hpc.cli.chaos import chaos as command

    status = command(
        words or (), root, mtbf_s=mtbf, seed=seed, faults=faults, roles=roles,
        duration_s=duration, factor=factor, for_s=for_,
    )  # fmt: skip
    raise typer.Exit(status)


add_runs(app)
add_jobs(app)
