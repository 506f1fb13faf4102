"""Limits that decisions depend on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """Times are in seconds."""

    start_timeout_s: float
    """All workers serve, or the run fails; a replacement is ready, or it is started again."""
    head_lease_s: float = 120.0
    """How long a new head waits for the workers of the one before it."""
    exit_wait_s: float = 0.25
    """How long a lost worker's process may take to end by itself, with a status that explains."""
    exit_limit_s: float = 10.0
    """How long a fenced one's status may take; then the run goes on without it."""
    stop_grace_s: float = 5.0
    """From the order to leave to the first signal."""
    stopped_grace_s: float = 10.0
    """How long a worker may be unresponsive before it is replaced."""
    max_restarts: int = 5
    """Of one worker within `restart_window_s`; then it is given up."""
    restart_window_s: float = 600.0
    node_factor: int = 3
    """The workers of one node may together be restarted so many times more often."""
    leaves_nodes: bool = False
    """Replacements go to other nodes where one loses workers too often: none is given up for it."""
    hopeless_s: float | None = None
    """How long nobody may be served, with nothing on its way that would change it; None: for ever.
    """
    backoff_s: float = 0.5
    """Before the second restart of a worker that was never steady; then doubled every time."""
    backoff_limit_s: float = 30.0
    job: str = ""
    """The Slurm job that this head is in or for."""
    notice_gather_s: float = 0.5
    """From one worker's notice until those of others, if they were given any, have come too."""
    load_batch: int = 16
    """Experts that an EW is told to load with one message."""
    load_timeout_s: float = 120.0
    """How long an order may be unanswered before other EWs are asked, and this one no more."""
    load_retry_s: float = 5.0
    """Before an EW that could not load an expert is asked again; doubled every time."""
    load_retry_limit_s: float = 300.0
