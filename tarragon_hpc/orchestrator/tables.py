"""The ERT that a run should have: for every expert who can serve it now. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.orchestrator.changes import experts_in_words

if TYPE_CHECKING:
    from tarragon_hpc.orchestrator.holdings import Holdings
    from tarragon_hpc.orchestrator.state import State

Table = tuple[tuple[str, ...], ...]


def table(holdings: Holdings) -> Table:
    """The live holders of every expert: its primary, its shadows, then others; none if there is
    none. While its primary is away, whoever answers for it now goes on doing so. Left out are
    copies that are about to be dropped, and who was given notice if others hold the expert.
    """
    published = holdings.state.table or ((),) * len(holdings.wanted)
    return tuple(_row(expert, holdings, before[:1]) for expert, before in enumerate(published))


def _row(expert: int, holdings: Holdings, leader: tuple[str, ...]) -> tuple[str, ...]:
    holders = [h for h in holdings.holders[expert] if (h, expert) not in holdings.surplus]
    holders = list(filter(holdings.stays, holders)) or holders
    wanted = holdings.wanted[expert]
    row = [w for w in wanted if w in holders]
    row += [h for h in holders if h not in wanted]
    if leader and leader[0] in row and wanted[:1] != tuple(row[:1]):
        row.remove(leader[0])
        row.insert(0, leader[0])
    return tuple(row)


def difference(state: State, new: Table) -> str:
    """What a new table changes, in words: `without ew1 (dead: killed by SIGKILL)`."""
    before, after = (dict.fromkeys(w for row in t for w in row) for t in (state.table, new))
    parts = [f"with {name}" for name in after if name not in before]
    for name in before:
        if name not in after:
            worker = state.workers.get(name)
            why = "removed" if worker is None else worker.reason or str(worker.phase)
            parts.append(f"without {name} ({why})")
    if not parts:
        moved = [e for e, row in enumerate(new) if row != state.table[e]]
        parts.append(f"other holders of {experts_in_words(moved)}")
    return ", ".join(parts)
