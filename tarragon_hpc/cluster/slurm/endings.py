"""How a step ended, in words, and what that says of its node. Pure.

The exit status alone says little: Slurm 22.05 ends `srun` with 0 when a node fails. Its own words
come first, then the status.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from tarragon_hpc.orchestrator.detector import describe_exit

_NODE_FAILED = re.compile(r"[Nn]ode failure on ([\w.\[\],-]+)|DUE TO NODE FAILURE")
_NOT_CREATED = re.compile(
    r"Unable to (?:create step for|confirm allocation for) job \d+: (.+)"
    r"|[Ii]nvalid (?:job id|generic resource).*|Requested .* not available.*"
    r"|Job/step already completing or completed"
)
_NOT_LAUNCHED = re.compile(
    r"[Tt]ask launch for .* failed on node (\S+): (.+)|[Aa]pplication launch failed: (.+)"
    r"|Error connecting to (?:slurmd|node).*"
)
_CANCELLED = re.compile(r"\*\*\* (?:STEP|JOB) \S+ ON \S+ CANCELLED AT \S+(?: DUE TO ([A-Z ]+))?")
_TASK = re.compile(r"error: (\S+): task \d+: (.+)")
_EXITED = re.compile(r"Exited with exit code (\d+)")
_EXEC = re.compile(r"error: (execve\(\): .+|couldn't chdir .+)")
_DECORATION = re.compile(r"^(?:srun|slurmstepd(?:-\S+)?): (?:error: )?")
_SHELL_SIGNALS = 128


@dataclass(frozen=True, slots=True)
class Ending:
    """cause: in words. bad_node: why its node must not be used any more, or empty. alive: what was
    started may still run, since nobody has reported its end. began: something was started at all.
    """

    cause: str
    bad_node: str = ""
    alive: bool = False
    began: bool = True


def classify(returncode: int, said: str, node: str, *, node_lost: bool = False) -> Ending:
    """What became of a step on a node. returncode: of `srun`, as in subprocess. said: its stderr.
    node_lost: Slurm has said elsewhere that the node is no more.
    """
    if match := _NODE_FAILED.search(said):
        cause = f"node failure on {match[1] or node}"
        return Ending(cause, bad_node=cause, alive=True)
    if match := _NOT_LAUNCHED.search(said):
        cause = f"could not be started on {node}: {_words(match[0])}"
        return Ending(cause, bad_node=cause, began=False)
    if match := _NOT_CREATED.search(said):
        return Ending(f"could not be started on {node}: {match[1] or match[0]}", began=False)
    # A step that is only told to end (SIGTERM) is "cancelled", too.
    if (match := _CANCELLED.search(said)) and not _EXITED.search(said):
        why = f" ({match[1].strip().lower()})" if match[1] else ""
        return Ending(f"its step was cancelled{why}")
    if match := _EXEC.search(said):
        return Ending(f"could not be started on {node}: {match[1]}", began=False)
    if node_lost:
        cause = f"node {node} was lost"
        return Ending(cause, bad_node=cause, alive=True)
    if returncode < 0:
        return Ending(f"its srun was {describe_exit(returncode)}", alive=True)
    task = _TASK.search(said)
    if task is not None:
        return Ending(_of_task(task[2], returncode))
    if returncode > _SHELL_SIGNALS and _is_signal(returncode - _SHELL_SIGNALS):
        return Ending(describe_exit(_SHELL_SIGNALS - returncode))
    if returncode == 0:
        return Ending("ended with status 0")
    words = [_words(line) for line in said.splitlines() if line.startswith("srun: error")]
    if words:  # Slurm is not content, and the task's own end is not reported
        return Ending(f"srun: {words[0]}", alive=True)
    return Ending(describe_exit(returncode))


def _of_task(words: str, returncode: int) -> str:
    """What srun says of the task: `Exited with exit code 9`, `Killed`, `Segmentation fault` …"""
    if exited := _EXITED.search(words):
        return describe_exit(int(exited[1]))
    if returncode > _SHELL_SIGNALS and _is_signal(returncode - _SHELL_SIGNALS):
        return describe_exit(_SHELL_SIGNALS - returncode)
    return words.lower()


def _is_signal(number: int) -> bool:
    return number in set(signal.Signals)


def _words(line: str) -> str:
    return _DECORATION.sub("", line.strip())
