"""Which EW loads or drops which experts now. Pure.

Experts that nobody serves come first, wherever there is room. Then everybody gets, a few at a
time, what the placement wants it to have. What is not needed any more is dropped last, and only
when no AW can still ask for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.ids import Role
from tarragon_hpc.orchestrator.actions import Load, Unload
from tarragon_hpc.orchestrator.changes import experts_in_words
from tarragon_hpc.orchestrator.state import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tarragon_hpc.orchestrator.holdings import Holdings
    from tarragon_hpc.orchestrator.policy import Policy
    from tarragon_hpc.orchestrator.state import State, Worker


def loads(holdings: Holdings, now: float, policy: Policy) -> Iterator[Load]:
    """All that should be loaded now; experts that nobody serves first."""
    able = [w for w in holdings.live.values() if holdings.able(w)]
    rescued: dict[str, list[int]] = {w.worker: [] for w in able}
    hottest = holdings.coldest_first(holdings.homeless)[::-1]
    for expert in hottest:
        heir = min(
            (w for w in able if _takes(w, expert, len(rescued[w.worker]), holdings, now, policy)),
            key=lambda w: (
                _failures(w, expert),  # noqa: B023 - used at once
                expert not in holdings.goals[w.worker],  # noqa: B023
                len(w.holds | w.loading) + len(rescued[w.worker]),
            ),
            default=None,
        )
        if heir is not None and not _soon_at_home(expert, heir, able, holdings):
            rescued[heir.worker].append(expert)
    for worker in able:
        for batch in _batches(worker, rescued[worker.worker], policy.load_batch):
            reason = f"no live worker holds {experts_in_words(batch)}"
            yield Load(worker.worker, worker.incarnation, batch, reason)
        if not rescued[worker.worker] and not worker.loading:
            yield from _restore(worker, holdings, now, policy)


def _restore(worker: Worker, holdings: Holdings, now: float, policy: Policy) -> Iterator[Load]:
    """What the placement wants an EW to have, one batch after the other: the experts with the
    fewest holders first.
    """
    lacks = holdings.lacks(worker).difference(holdings.homeless)
    order = sorted(
        (e for e in lacks if not _blocked(worker, e, now, policy)),
        key=lambda e: (len(holdings.holders[e]), -holdings.state.rules.weight(e), e),
    )
    fitting = order[: int(min(len(order), max(0, holdings.room(worker))))]
    for batch in _batches(worker, fitting, policy.load_batch):
        yield Load(worker.worker, worker.incarnation, batch, "its place is there")
        return


def _soon_at_home(expert: int, heir: Worker, able: Sequence[Worker], holdings: Holdings) -> bool:
    """Whether an expert had better wait for room where it is placed, which is being made."""
    goals = holdings.goals
    return expert not in goals[heir.worker] and any(
        expert in goals[w.worker] and w.dropping and not _failures(w, expert) for w in able
    )


def _takes(
    worker: Worker, expert: int, more: int, holdings: Holdings, now: float, policy: Policy
) -> bool:
    """Whether an EW could load an expert, beside `more` others."""
    if expert in worker.dropping or _blocked(worker, expert, now, policy):
        return False
    return holdings.room(worker) - more >= 1


def _failures(worker: Worker, expert: int) -> int:
    return worker.failed[expert].times if expert in worker.failed else 0


def _blocked(worker: Worker, expert: int, now: float, policy: Policy) -> bool:
    """Whether an EW failed with an expert so lately that it should not be asked again. After the
    first time it may be, for this expert alone: another of the same order may have been at fault.
    """
    times = _failures(worker, expert)
    if times < 2:
        return False
    pause = min(policy.load_retry_s * 2.0 ** min(times - 2, 30), policy.load_retry_limit_s)
    return now < worker.failed[expert].at + pause


def _batches(worker: Worker, experts: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    """Orders of a bearable size; experts with which the EW has failed before go one by one."""
    fresh = [e for e in experts if e not in worker.failed]
    for first in range(0, len(fresh), size):
        yield tuple(fresh[first : first + size])
    for expert in experts:
        if expert in worker.failed:
            yield (expert,)


def unloads(holdings: Holdings, now: float, policy: Policy) -> Iterator[Unload]:
    """Copies that no table in use names: not that of any AW that may still run requests by it."""
    state = holdings.state
    if not all_aws_follow(state):
        return
    for name, worker in holdings.live.items():
        idle = [e for n, e in sorted(holdings.surplus) if n == name and name not in state.table[e]]
        experts = tuple(e for e in idle if not _blocked(worker, e, now, policy))
        if holdings.able(worker) and experts:
            yield Unload(name, worker.incarnation, experts, "others hold them")


def all_aws_follow(state: State) -> bool:
    """Whether every AW that may run requests routes by the published table."""
    aws = [w for w in state.of(Role.AW) if w.phase is Phase.SERVING]
    return all(w.table_applied >= state.epoch for w in aws)
