"""`tarragon status --watch`: a run as it changes, on a terminal in place, else line by line."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live

from tarragon_hpc.cli.status import render, summary, with_log
from tarragon_hpc.observe.batch_words import batch_line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Look = Callable[[], Awaitable[dict[str, Any]]]
    Over = Callable[[dict[str, Any]], bool]

_LOOK_S = 1.0


def watch(look: Look, over: Over, console: Console | None = None) -> None:
    """Show a run until it is over, or Ctrl-C. Raises ClusterError if there is nothing to see."""
    console = console or Console()
    try:
        asyncio.run(
            _live(look, over, console) if console.is_terminal else _lines(look, over, console)
        )
    except KeyboardInterrupt:
        console.print("no longer watching; the run goes on")


async def _live(look: Look, over: Over, console: Console) -> None:
    found = await look()
    with Live(render(found, fold=True), console=console, auto_refresh=False) as live:
        while not over(found):
            await asyncio.sleep(_LOOK_S)
            found = await look()
            live.update(render(found, fold=True), refresh=True)
        live.update(render(with_log(found), fold=True), refresh=True)


async def _lines(look: Look, over: Over, console: Console) -> None:
    told = ""
    while True:
        found = await look()
        if (line := one_line(found)) != told:
            told = line
            stamp = time.strftime("%H:%M:%SZ", time.gmtime())
            console.print(f"{stamp} {line}", markup=False, highlight=False, soft_wrap=True)
        if over(found):
            return
        await asyncio.sleep(_LOOK_S)


def one_line(status: dict[str, Any]) -> str:
    """`serving; AW 2 serving; EW 2 serving; http://…`: what is printed when it has changed."""
    reason = status.get("reason")
    batch = batch_line(status["batch"]) if status.get("batch") else ""
    state = f"{status['state']}: {reason}" if reason else status["state"]
    return "; ".join(filter(None, [state, summary(status), batch, status["endpoint"]]))
