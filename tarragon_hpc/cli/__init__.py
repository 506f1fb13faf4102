"""The `tarragon` command. Nothing but typer is imported before a command runs."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; an error raised on purpose is printed and gives the exit status."""
    from tarragon_hpc.cli.app import app
    from tarragon_hpc.errors import TarragonError

    try:
        app(prog_name="tarragon")
    except TarragonError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
