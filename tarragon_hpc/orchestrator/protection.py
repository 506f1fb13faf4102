"""How well the KV of running requests is kept, and what losing an AW or CS would cost. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tarragon_hpc.ids import Incarnation, Role
from tarragon_hpc.observe.units import size
from tarragon_hpc.orchestrator.state import LEAVING, Phase

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tarragon_hpc.orchestrator.state import State, Worker

# So long a store that took the place of a lost one is a reason for what is unprotected.
_NEW_S = 60.0


@dataclass(frozen=True, slots=True)
class Protection:
    """`stores` of `wanted` serve. `requests` run, of which `protected` could be restored up to
    `lag_tokens` (of all of them) that are not in a store yet. `unprotected`: why not all of them
    are, or empty. `lines`: the same for people; none if the run has no stores.
    """

    stores: int
    wanted: int
    requests: int
    protected: int
    lag_tokens: int
    used_bytes: int
    capacity_bytes: int
    evicted: int
    unprotected: str
    lines: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """The same as plain data, ready for JSON."""
        return asdict(self) | {"lines": list(self.lines)}


def protection_of(
    state: State, stats: Mapping[Incarnation, Mapping[str, float]], now: float | None = None
) -> Protection:
    """From what the workers last reported; `now` as in the state's events, None if unknown."""
    wanted = [w for w in state.of(Role.CS) if not w.retired]
    stores = sum(w.phase is Phase.SERVING and w.responsive for w in wanted)

    def total(role: Role, name: str) -> int:
        workers = (w for w in state.of(role) if w.phase not in LEAVING)
        known = (stats.get(Incarnation(w.worker, w.incarnation), {}) for w in workers)
        return int(sum(s.get(name, 0.0) for s in known))

    requests, protected = total(Role.AW, "kv_requests"), total(Role.AW, "kv_protected")
    lag, evicted = total(Role.AW, "kv_lag_tokens"), total(Role.CS, "kv_evicted")
    used, capacity = total(Role.CS, "kv_used_bytes"), total(Role.CS, "kv_capacity_bytes")
    why = ""
    lines: list[str] = []
    if wanted:
        why = _why(state, wanted, requests - protected, now)
        lines.append(
            f"checkpoints: {stores} of {len(wanted)} stores serve; {protected} of {requests} "
            f"requests protected, {lag} tokens behind; {size(used)} of {size(capacity)} used; "
            f"{evicted} evicted"
        )
        lines += [f"unprotected: {why}"] * bool(why)
    return Protection(
        stores, len(wanted), requests, protected, lag, used, capacity, evicted, why, tuple(lines)
    )


def _why(state: State, wanted: list[Worker], bare: int, now: float | None) -> str:
    """Why requests are not protected, in words; empty if all are."""
    many = f"{bare} requests" if bare != 1 else "1 request"
    if not state.stores:
        return "everything: no checkpoint store serves; what a lost AW ran is computed anew"
    if bare <= 0:
        return ""
    away = [w.worker for w in wanted if w.phase is not Phase.SERVING or not w.responsive]
    if away:
        return f"{many}: being copied to other stores than {', '.join(away)}"
    fresh = [w.worker for w in wanted if w.before and (now is None or now - w.since < _NEW_S)]
    if fresh:
        return f"{many}: being copied anew after the loss of {', '.join(fresh)}"
    return f"{many}: on the way to the stores"


def losses(state: State) -> Iterator[str]:
    """What the death of an AW, and of a CS, costs now, in words."""
    aws = [w for w in state.of(Role.AW) if w.phase is Phase.SERVING and w.member]
    go_on = "other AWs go on with its requests"
    if len(aws) < 2:
        go_on = "its requests wait for its replacement"
    stores = [w for w in state.of(Role.CS) if not w.retired]
    if state.stores:
        how = "restored from checkpoint stores; about one token of each is computed anew"
    elif stores:
        how = "all their tokens are computed anew, since no checkpoint store serves"
    else:
        how = "all their tokens are computed anew, since there are no checkpoint stores"
    yield f"the loss of an AW: {go_on}, {how}"
    if stores:
        yield f"the loss of a CS: {_loss_of_store(state, len(state.stores))}"


def _loss_of_store(state: State, serving: int) -> str:
    nobody = "no request notices"
    if state.rules.replicas > 1 and serving > 1:
        return f"{nobody}; another one has the same KV, and the AWs copy it again"
    again = "the other stores" if serving > 1 else "its replacement"
    return (
        f"{nobody}; the AWs copy their KV again, to {again}, and what an AW loses before that "
        "is computed anew"
    )
