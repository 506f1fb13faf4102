"""`tarragon scale` and `tarragon coverage`: how many workers there are, and what they can lose."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from tarragon_hpc.cli.runs import locate
from tarragon_hpc.cluster.client import head_of, query_status
from tarragon_hpc.errors import UserError
from tarragon_hpc.ids import Role

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_ROLES = tuple(Role)


def read_sizes(words: Sequence[str]) -> tuple[str | None, dict[str, int]]:
    """`[RUN] ew=3 aw=2` as (run, role → count). Raises UserError."""
    run = words[0] if words and "=" not in words[0] else None
    sizes: dict[str, int] = {}
    for word in words[run is not None :]:
        role, equals, count = word.partition("=")
        if not equals or role not in _ROLES:
            raise UserError(f"{word!r}: expected ROLE=COUNT with a role of {', '.join(_ROLES)}")
        least = 0 if role == Role.CS else 1
        if not (count.isascii() and count.isdigit()) or int(count) < least:
            raise UserError(f"{word}: must be a number of workers, {least} or more")
        if role in sizes:
            raise UserError(f"{word}: {role} is given twice")
        sizes[role] = int(count)
    if not sizes:
        raise UserError("expected [RUN] ROLE=COUNT…, such as `ew=3`")
    return run, sizes


def scale(words: Sequence[str], root: Path | None) -> None:
    """Ask the head for so many workers; one role after the other."""
    run, sizes = read_sizes(words)
    directory = locate(run, root)

    async def ask() -> None:
        async with head_of(directory) as head:
            for role, count in sizes.items():
                await head.scale(role, count)
                print(f"{role}={count}: under way; `tarragon status` shows it", flush=True)

    asyncio.run(ask())


def coverage(run: str | None, root: Path | None, *, as_json: bool) -> None:
    """Print which failures the run can take, and how."""
    directory = locate(run, root)
    status = asyncio.run(query_status(directory))
    found = status.get("coverage")
    if found is None:
        raise UserError(f"RUN: {directory.name} is {status['state']}: it says nothing of coverage")
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(found["lines"]))
