"""The commands and their options; what they do is in the modules beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tarragon_hpc import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="MoE inference in which the death of a worker is a blip, not an outage.",
)
model_app = typer.Typer(no_args_is_help=True, help="Make checkpoints to try things with.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure; every bench prints a table.")
app.add_typer(model_app, name="model")
app.add_typer(bench_app, name="bench")

ConfigFile = Annotated[
    Path | None, typer.Argument(metavar="CONFIG", help="YAML file; may be left out with --set.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. attention.workers=4."),
]
RunDir = Annotated[
    Path | None, typer.Option(help="Directory of the run (new or empty); default: in run.root.")
]
Root = Annotated[
    Path | None, typer.Option(help="Where runs are looked for; default: the one of run.root.")
]
Run = Annotated[
    str | None, typer.Argument(metavar="RUN", help="Run id or directory; default: the latest.")
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers here as JSON.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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
def doctor(json: Json = False) -> None:
    """Report what this machine can run: native module, vLLM, GPUs, verbs, Slurm."""
    from tarragon_hpc.cli.doctor import as_json, examine, show

    findings = examine()
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
def serve(config: ConfigFile = None, run_dir: RunDir = None, overrides: Overrides = None) -> None:
    """Serve a model in the foreground; prints `ready: http://HOST:PORT/v1` when it does.

    SIGINT or SIGTERM lets running requests finish and ends the run; a second one does not wait.
    """
    from tarragon_hpc.cli.serve import serve as command

    raise typer.Exit(command(config, overrides or (), run_dir))


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
    overrides: Overrides = None,
) -> None:
    """Answer a file of requests and end: OpenAI batch lines, or {"prompt": …} lines.

    Results are written as they come. A second call with the same files does what is left.
    """
    from tarragon_hpc.cli.batch import generate as command

    raise typer.Exit(command(config, overrides or (), source, target, run_dir))


@app.command()
def status(run: Run = None, root: Root = None, json: Json = False) -> None:
    """Show a run and its workers."""
    from tarragon_hpc.cli.runs import status as command

    command(run, root, as_json=json)


@app.command()
def logs(
    run: Run = None,
    worker: Annotated[
        str | None, typer.Argument(metavar="WORKER", help="Such as aw0 or ew1.2; default: all.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Of each log.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="And what comes.")] = False,
    root: Root = None,
) -> None:
    """Print the logs of a run's workers."""
    from tarragon_hpc.cli.runs import logs as command

    command(run, worker, root, lines=lines, follow=follow)


@app.command()
def stop(
    run: Run = None,
    drain: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds for running requests; default: drain_timeout_s."),
    ] = None,
    root: Root = None,
) -> None:
    """End a run in good order, from anywhere on its machine."""
    from tarragon_hpc.cli.runs import stop as command

    command(run, root, drain)


@bench_app.command("datapath")
def bench_datapath(
    rounds: Annotated[int | None, typer.Option(min=1, help="Default: 30.")] = None,
    json: JsonFile = None,
) -> None:
    """A call of expert_io against an echo EW, beside a raw shared-memory ping-pong."""
    from tarragon_hpc.cli.bench import bench

    bench("datapath", json, rounds=rounds)


@bench_app.command("steady")
def bench_steady(
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint; default: one of the bench preset is made.")
    ] = None,
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
