"""Which attention worker (AW) runs a sequence. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.ids import parse_worker_id

if TYPE_CHECKING:
    from collections.abc import Mapping


def choose_worker(running: Mapping[str, int]) -> str | None:
    """The AW with the fewest running sequences; of equals, the one with the lowest number.

    running: AW id → sequences it runs, one entry per AW that serves. None if there is none.
    """
    return min(running, key=lambda w: (running[w], parse_worker_id(w)[1]), default=None)
