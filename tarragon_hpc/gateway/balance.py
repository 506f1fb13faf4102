"""Which attention worker (AW) runs a sequence. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.ids import parse_worker_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tarragon_hpc.ids import Incarnation


def choose_worker(running: Mapping[Incarnation, int]) -> Incarnation | None:
    """The AW with the fewest running sequences; of equals, the one with the lowest number.

    running: sequences that every AW runs which could take one. None if there is none.
    """
    return min(running, key=lambda i: (running[i], parse_worker_id(i.worker)[1]), default=None)
