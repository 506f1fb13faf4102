"""What Slurm says of jobs. Pure: text of `squeue` in, views out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JobView:
    """One job at one look. state: Slurm's word, such as PENDING. reason: why it waits or ended.

    nodes: names, of all its components. expected_start: as Slurm prints it; empty: unknown.
    left_s: until its time limit; None: unknown.
    """

    job: str
    state: str
    reason: str = ""
    nodes: tuple[str, ...] = ()
    expected_start: str = ""
    left_s: float | None = None

    @property
    def waits(self) -> bool:
        """It has not started, or is to start again."""
        return self.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")

    @property
    def over(self) -> bool:
        """It will never run again."""
        return not self.waits and self.state not in ("RUNNING", "COMPLETING", "STAGE_OUT")
