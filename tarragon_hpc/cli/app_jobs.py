"""The commands about Slurm jobs: render, resume, attach, and the batch process's own `head`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Site = Annotated[
    str | None,
    typer.Option(metavar="NAME|PATH", help="What the cluster needs; see slurm/sites."),
]
Wait = Annotated[
    bool, typer.Option("--wait", help="On Slurm: follow it until it serves, or is done.")
]
Fragile = Annotated[
    bool, typer.Option("--allow-fragile", help="A hetjob may have components of one node.")
]
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
_Input = Annotated[
    str | None, typer.Option("--input", "-i", metavar="FILE", help="Generate: its requests.")
]
_Output = Annotated[
    str | None, typer.Option("--output", "-o", metavar="FILE", help="Generate: its results.")
]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(render)
    app.command()(resume)
    app.command()(attach)
    app.command(hidden=True)(head)


def render(
    config: ConfigFile = None,
    site: Site = None,
    source: _Input = None,
    target: _Output = None,
    test_only: Annotated[
        bool, typer.Option("--test-only", help="Ask Slurm whether it would run, and when.")
    ] = False,
    allow_fragile: Fragile = False,
    overrides: Overrides = None,
) -> None:
    """Print the batch script of a configuration; `tarragon render CONFIG | sbatch` submits it.

    It serves; with --input and --output it answers a file of requests instead.
    """
    from tarragon_hpc.cli.batch import make_work
    from tarragon_hpc.cli.render import render as command

    work = make_work(source, target)
    raise typer.Exit(
        command(
            config, overrides or (), site, work, test_only=test_only, allow_fragile=allow_fragile
        )
    )


def resume(
    run: Run = None,
    wait: Wait = False,
    root: Root = None,
) -> None:
    """Go on with a run whose job is over: submit another one, which restores what was saved."""
    from tarragon_hpc.cli.submit import resume as command

    raise typer.Exit(command(run, root, wait=wait))


def attach(
    run: Run = None,
    root: Root = None,
    force: Annotated[
        bool, typer.Option("--force", help="Even if it has a head, which then leaves.")
    ] = False,
) -> None:
    """Be the head of a run on Slurm that has lost its own, here, in the foreground.

    Its workers go on, and streams can be resumed. Ctrl-C leaves the run without a head again: its
    job starts the next one, if it has a batch process; else `tarragon attach` again, or
    `tarragon stop` first.
    """
    from tarragon_hpc.cli.attach import attach as command

    raise typer.Exit(command(run, root, force=force))


def head(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Its directory.")] = None,
    new: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="A new run, of this job; -: from standard input."),
    ] = None,
    site: Site = None,
    source: _Input = None,
    target: _Output = None,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    child: Annotated[bool, typer.Option(help="Of a process that starts the next one.")] = False,
    standby: Annotated[bool, typer.Option(help="Wait until the run has no head.")] = False,
    patience: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="For others to become it first.")
    ] = 5.0,
    log: Annotated[Path | None, typer.Option(help="Append what it says to this file.")] = None,
) -> None:
    """Be the head of a run that was prepared by `serve` or `generate`; for job scripts."""
    from tarragon_hpc.errors import UserError

    if (run is None) == (new is None):
        raise UserError("head: takes a run's directory, or --new CONFIG")
    if run is not None:
        from tarragon_hpc.cli.head import be_head, run_head

        if not (child or standby):
            raise typer.Exit(run_head(str(run)))
        if log is not None:
            from tarragon_hpc.cluster.entry import write_to

            write_to(log)
        parent = os.getppid() if child else None
        raise typer.Exit(be_head(str(run), standby=standby, patience_s=patience, parent=parent))
    from tarragon_hpc.cli.batch import make_work
    from tarragon_hpc.cli.new_run import new_run

    work = make_work(source, target)
    raise typer.Exit(new_run(new, overrides or (), site, work, run_dir))
