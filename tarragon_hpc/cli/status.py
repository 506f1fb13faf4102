"""`tarragon status`: a run as tables."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Group, OverflowMethod
from rich.table import Table
from rich.text import Text

from tarragon_hpc.cluster.local import log_tail
from tarragon_hpc.cluster.slurm.jobs import HEAD
from tarragon_hpc.cluster.slurm.standing import OVER
from tarragon_hpc.cluster.slurm.standing import in_words as job_reason
from tarragon_hpc.ids import parse_worker_id
from tarragon_hpc.observe.batch_words import batch_line
from tarragon_hpc.observe.story_words import in_words
from tarragon_hpc.orchestrator.changes import ranges

_FAILURES = 3
_COLOURS = {
    "serving": "green",
    "running": "green",
    "completed": "green",
    "dead": "red",
    "cancelled": "red",
    "timeout": "red",
    "node_fail": "red",
    "failed": "red",
    "unresponsive": "red",
}


def render(status: dict[str, Any], *, fold: bool = False) -> Group:
    """What `status --json` prints, for people. fold: to the terminal's width."""
    endpoint = status["endpoint"] or "no endpoint"
    nth = f"  head {status['head']}" if status.get("head", 1) > 1 else ""
    head = Text.assemble(
        (status["run"], "bold"), "  ", _word(status["state"]),
        f"  epoch {status['epoch']}{nth}  {endpoint}",
    )  # fmt: skip
    batch = batch_line(status["batch"]) if status.get("batch") else ""
    for line in filter(None, (status.get("reason"), summary(status), batch)):
        head.append(f"\n{line}")
    parts: list[Text | Table] = [head]
    if tunnel := status.get("tunnel"):
        # To be copied: it is left to the terminal to fold it.
        overflow: OverflowMethod = "fold" if fold else "ignore"
        parts.append(Text(f"from elsewhere: {tunnel}", no_wrap=not fold, overflow=overflow))
    if jobs := status.get("jobs"):
        parts.append(job_table(jobs))
    if status["workers"]:
        parts.append(_workers(status["workers"]))
    if checkpoint := (status.get("checkpoint") or {}).get("lines"):
        parts.append(Text("\n".join(["", *checkpoint])))
    if coverage := (status.get("coverage") or {}).get("lines"):
        parts.append(Text("\n".join(["", *coverage])))
    if failures := status.get("failures"):
        shown = [in_words(story) for story in failures[-_FAILURES:]]
        parts.append(Text("\n".join(["", *shown])))
    if tail := status.get("log_tail"):
        lines = [f"  | {line}" for line in tail.splitlines()]
        parts.append(Text("\n".join([f"\nthe end of {status['job_log']}:", *lines])))
    return Group(*parts)


def with_log(status: dict[str, Any]) -> dict[str, Any]:
    """With the end of what its jobs have printed, if that is all there is of a run."""
    if status["state"] not in OVER or not status.get("job_log"):
        return status
    return status | {"log_tail": log_tail(Path(status["job_log"]))}


def summary(status: dict[str, Any]) -> str:
    """`AW 2 serving; EW 1 serving, 1 starting`: how many of each role are in each state."""
    states: dict[str, Counter[str]] = {}
    for worker in status["workers"]:
        states.setdefault(worker["role"].upper(), Counter())[worker["state"]] += 1
    told = [
        f"{role} " + ", ".join(f"{count} {state}" for state, count in found.most_common())
        for role, found in states.items()
    ]
    return "; ".join(told)


def job_table(jobs: list[dict[str, Any]]) -> Table:
    """The jobs of a run on Slurm; those that are over only if nothing came after them."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("job", "for", "state", "left", "nodes", ""):
        table.add_column(column, overflow="fold")
    chain = sum(job["kind"] == HEAD for job in jobs) > 1
    for job in _of_interest(jobs):
        table.add_row(
            job["job"],
            job["worker"] or (f"chain {job['number']}" if chain else "head"),
            _word(job["state"].lower() or "unknown"),
            duration(job["left_s"]),
            ",".join(job["nodes"]),
            Text(_job_remark(job)),
        )
    return table


def duration(seconds: float | None) -> str:
    """`2-03:04`, `3:04:05`, `4:05`: days-hours:minutes, hours:minutes:seconds, minutes:seconds."""
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}-{hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _of_interest(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    alive = [job for job in jobs if not job["over"]]
    return alive or jobs[-1:]


def _job_remark(job: dict[str, Any]) -> str:
    told = [job_reason(job["reason"]) if job["reason"] else ""]
    told += [f"expected to start {job['expected_start']}"] if job["expected_start"] else []
    return ", ".join(filter(None, told))


def _workers(workers: list[dict[str, Any]]) -> Table:
    steps = any(_place(worker) for worker in workers)
    table = Table(box=None, padding=(0, 2, 0, 0))
    columns = ("worker", "state", "inc", *(["step"] if steps else []), "pid")
    for column in (*columns, "node", "experts", "links", ""):
        table.add_column(column, overflow="fold")
    for worker in workers:
        table.add_row(
            worker["id"],
            _word(worker["state"]),
            str(worker["incarnation"]),
            *([_place(worker)] if steps else []),
            str(worker["pid"] or ""),
            worker.get("node") or worker["host"] or "",
            ranges(worker["experts"]),
            links_in_words(worker.get("links") or {}),
            Text(_remark(worker)),
        )
    return table


def _word(word: str) -> Text:
    return Text(word, style=_COLOURS.get(word, "yellow"))


def links_in_words(links: dict[str, str]) -> str:
    """`all shm`, `ew0-2 shm, ew3 tcp`: the transport to each peer."""
    kinds = set(links.values())
    if len(kinds) == 1:
        return f"all {kinds.pop()}"
    groups: dict[tuple[str, str], list[int]] = {}
    for peer, kind in links.items():
        role, number = parse_worker_id(peer)
        groups.setdefault((role, kind), []).append(number)
    return ", ".join(f"{role}{ranges(group)} {kind}" for (role, kind), group in groups.items())


def _place(worker: dict[str, Any]) -> str:
    """Its step of Slurm, or the job in which it is alone."""
    return str(worker.get("step") or worker.get("job") or "")


def _remark(worker: dict[str, Any]) -> str:
    told = [worker.get("reason") or "", worker.get("exit") or ""]
    if waits := worker.get("pending_reason"):
        told.insert(0, job_reason(waits))
    if start := worker.get("expected_start"):
        told.insert(1, f"expected to start {start}")
    return ", ".join(dict.fromkeys(part for part in told if part))
