"""The commands that look at a run or end it: status, endpoint, logs, stop."""

from __future__ import annotations

from typing import Annotated

import typer

# At run time too: typer reads annotations.
from tarragon_hpc.cli.app_jobs import Root, Run  # noqa: TC001

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (status, endpoint, logs, stop):
        app.command()(command)


def status(
    run: Run = None,
    root: Root = None,
    json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Until the run is over.")] = False,
) -> None:
    """Show a run, its jobs and its workers."""
    from tarragon_hpc.cli.runs import status as command

    command(run, root, as_json=json, watch=watch)


def endpoint(
    run: Run = None,
    ssh: Annotated[bool, typer.Option("--ssh", help="Print an ssh line that leads there.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until it serves.")] = False,
    root: Root = None,
) -> None:
    """Print the URL at which a run serves."""
    from tarragon_hpc.cli.runs import endpoint as command

    raise typer.Exit(command(run, root, ssh=ssh, wait=wait))


def logs(
    run: Run = None,
    worker: Annotated[
        str | None,
        typer.Argument(metavar="WORKER", help="Such as aw0, ew1.2, head or job; default: all."),
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Of each log.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="And what comes.")] = False,
    root: Root = None,
) -> None:
    """Print the logs of a run's workers and heads."""
    from tarragon_hpc.cli.runs import logs as command

    command(run, worker, root, lines=lines, follow=follow)


def stop(
    run: Run = None,
    drain: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds for running requests; default: drain_timeout_s."),
    ] = None,
    kill: Annotated[
        bool, typer.Option("--kill", help="Slurm: cancel its jobs without asking its head.")
    ] = False,
    root: Root = None,
) -> None:
    """End a run in good order, from anywhere on its machine or cluster."""
    from tarragon_hpc.cli.ending import stop as command

    command(run, root, drain, kill=kill)
