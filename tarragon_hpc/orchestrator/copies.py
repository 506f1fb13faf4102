"""Which EW loads or drops which experts now. Pure.

Experts that nobody serves come first, wherever there is room. Then everybody gets, a few at a
time, what the placement wants it to have. What is not needed any more is dropped last, and only
when no AW can still ask for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.ids import Role
from tarragon_hpc.orchestrator.actions import Expire, Load, Unload
from tarragon_hpc.orchestrator.changes import experts_in_words
from tarragon_hpc.orchestrator.state import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tarragon_hpc.orchestrator.holdings import Holdings
    from tarragon_hpc.orchestrator.policy import Policy
    from tarragon_hpc.orchestrator.state import State, Worker


def expire(holdings: Holdings, now: float, policy: Policy) -> Iterator[Expire]:
    """Loads that will not be waited for any longer."""
    for worker in holdings.live.values():
        if any(now - at > policy.load_timeout_s for at in worker.loading.values()):
            reason = f"no answer to a load within {policy.load_timeout_s:g} s"
            yield Expire(worker.worker, worker.incarnation, reason)


def loads(holdings: Holdings, now: float, policy: Policy) -> Iterator[Load]:
    """All that should be loaded now; experts that nobody serves first."""
    able = [w for w in holdings.live.values() if holdings.placed(w) and w.responsive]
    rescued: dict[str, list[int]] = {w.worker: [] for w in able}
    hottest = holdings.coldest_first(holdings.homeless)[::-1]
    for expert in hottest:
        heir = min(
            (w for w in able if _takes(w, expert, len(rescued[w.worker]), holdings, now, policy)),
            key=lambda w: (
                expert not in holdings.goals[w.worker],  # noqa: B023 - used at once
                len(w.holds | w.loading.keys()) + len(rescued[w.worker]),
            ),
            default=None,
        )
        if heir is not None:
            rescued[heir.worker].append(expert)
    for worker in able:
        experts = rescued[worker.worker]
        for batch in _batches(experts, policy.load_batch):
            reason = f"no live worker holds {experts_in_words(batch)}"
            yield Load(worker.worker, worker.incarnation, batch, reason)
        if not experts and not worker.loading:
            yield from _restore(worker, holdings, now, policy)


def _restore(worker: Worker, holdings: Holdings, now: float, policy: Policy) -> Iterator[Load]:
    """What the placement wants an EW to have: the experts with the fewest holders first."""
    lacks = holdings.lacks(worker).difference(holdings.homeless)
    order = sorted(
        (e for e in lacks if not _blocked(worker, e, now, policy)),
        key=lambda e: (len(holdings.holders[e]), -holdings.state.rules.weight(e), e),
    )
    batch = tuple(order[: int(min(policy.load_batch, max(0, holdings.room(worker))))])
    if batch:
        yield Load(worker.worker, worker.incarnation, batch, "its place is there")


def _takes(
    worker: Worker, expert: int, more: int, holdings: Holdings, now: float, policy: Policy
) -> bool:
    """Whether an EW could load an expert, beside `more` others."""
    if expert in worker.dropping or _blocked(worker, expert, now, policy):
        return False
    return holdings.room(worker) - more >= 1


def _blocked(worker: Worker, expert: int, now: float, policy: Policy) -> bool:
    """Whether an EW failed to load an expert so lately that it should not be asked again."""
    failure = worker.failed.get(expert)
    if failure is None:
        return False
    delay = policy.load_retry_s * 2.0 ** min(failure.times - 1, 30)
    return now < failure.at + min(delay, policy.load_retry_limit_s)


def _batches(experts: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    for first in range(0, len(experts), size):
        yield tuple(experts[first : first + size])


def unloads(holdings: Holdings) -> Iterator[Unload]:
    """Copies that no table in use names, or that of any AW that still runs requests by it."""
    state = holdings.state
    if not all_aws_follow(state):
        return
    for name, worker in holdings.live.items():
        idle = sorted(e for n, e in holdings.surplus if n == name and name not in state.table[e])
        if holdings.placed(worker) and idle:
            yield Unload(name, worker.incarnation, tuple(idle), "others hold them")


def all_aws_follow(state: State) -> bool:
    """Whether every AW that may run requests routes by the published table."""
    aws = [w for w in state.of(Role.AW) if w.phase is Phase.SERVING]
    return all(w.table_applied >= state.epoch for w in aws)
