"""A Slurm of six nodes on one machine, for tests: up in seconds, gone without a trace.

    python slurm/testcluster/cluster.py up DIR [--variant strict]    prints the SLURM_CONF to use
    python slurm/testcluster/cluster.py down DIR

It is Debian's slurm-wlm with munge, as root or not; any number of them may run side by side, each
in a directory of its own. Partitions: gpu (n0-n3), cpu (n4, n5), low and high (all, high preempts
low), nomem (variant strict: refuses --mem).
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from slurm.testcluster import processes, registry, template
from slurm.testcluster.commands import Commands
from slurm.testcluster.template import NODES, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NEEDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
_LONGEST_SOCKET = 100


def missing() -> str | None:
    """Why there can be no cluster here; None if there can."""
    gone = [name for name in _NEEDS if _program(name) is None]
    return f"not installed: {', '.join(gone)} (Debian: slurm-wlm, munge)" if gone else None


class Cluster(Commands):
    """A cluster and what may befall it. `root` is its directory; one that runs is opened so too."""

    def __init__(self, root: Path, settings: Settings = template.VARIANTS["default"]) -> None:
        super().__init__(root)
        self.settings = settings
        known = self.root / "name"
        self.name = known.read_text() if known.exists() else f"tt{secrets.token_hex(4)}"

    # the way up and down

    def up(self, *, owned: bool = False) -> None:
        """Start it and wait until all nodes are idle. owned: by this process, to be swept later.

        Raises RuntimeError.
        """
        if (problem := missing()) is not None:
            raise RuntimeError(problem)
        if len(f"{self.root}/munge.socket") > _LONGEST_SOCKET:
            raise RuntimeError(f"{self.root}: too long a path for munge's socket")
        self._write(os.getpid() if owned else None)
        places = {"key": "munge.key", "socket": "munge.socket", "pid": "munged.pid"}
        places |= {"log": "log/munged.log", "seed": "munge.seed"}
        files = [
            f"--{kind}{'' if kind == 'socket' else '-file'}={self.root}/{name}"
            for kind, name in places.items()
        ]
        self._daemon("munged", *files, "--num-threads=2", "--force")
        self._daemon("slurmctld", "-f", str(self.conf))
        for node in NODES:
            self.start_slurmd(node)
        wait(lambda: set(self.nodes().values()) == {"idle"}, 30, "all nodes idle", every_s=0.1)

    def down(self) -> None:
        """End every process of it, and everything that runs on it."""
        processes.kill_all(self.processes)
        registry.leave(self.name)

    def processes(self) -> set[int]:
        """Daemons, tasks and clients of this cluster, whatever they have lost sight of."""
        daemons = {pid for pid in map(self._pid, ("munged", "slurmctld")) if pid}
        clients = {
            pid
            for pid in processes.with_environment(f"SLURM_CONF={self.conf}")
            if Path("".join(processes.command(pid)[:1])).name in ("srun", "sbatch", "salloc")
        }
        tasks = processes.with_environment(f"SLURM_CLUSTER_NAME={self.name}")
        nodes = {pid for node in NODES for pid in self._daemons_of(node)}
        return daemons | processes.descendants(nodes | tasks | clients)

    # what befalls it

    def tasks(self, step: str) -> set[int]:
        """Processes of a step J.S (or J.batch) on all its nodes."""
        keepers = {
            pid
            for node in NODES
            for pid in self._daemons_of(node)
            if "".join(processes.command(pid)[:1]).startswith(f"slurmstepd: [{step}]")
        }
        return processes.descendants(keepers) - keepers

    def kill_tasks(self, step: str) -> None:
        """SIGKILL the processes of a step, and them only."""
        _kill(self.tasks(step))

    def kill_srun(self, name: str, *, shepherd: bool = True) -> None:
        """SIGKILL the srun whose --job-name this is; its task lives on. Raises LookupError.

        shepherd: its second process too, which otherwise ends the step when the first has died.
        """
        tree = processes.parents()
        found = {pid for pid in tree if self._is_srun(pid, f"--job-name={name}")}
        if not found:
            raise LookupError(f"no srun of {name}")
        _kill(found if shepherd else {pid for pid in found if tree[pid] not in found})

    def kill_slurmd(self, node: str) -> None:
        """SIGKILL a node's slurmd: the node falls silent, but what runs there goes on."""
        if (pid := self._pid(f"slurmd-{node}")) is not None:
            _kill({pid})

    def fail_node(self, node: str) -> None:
        """A node loses power: slurmd, steps and all their processes at once."""
        # None may see another's end: an srun's shepherd would have its step ended elsewhere.
        processes.stop_all(lambda: processes.descendants(self._daemons_of(node)))
        found = processes.descendants(self._daemons_of(node))
        self.kill_slurmd(node)
        processes.kill_all(lambda: processes.alive(found))

    def start_slurmd(self, node: str, *, without: Path | None = None) -> None:
        """Start a node's slurmd, or start it again. without: a directory of which that node sees
        another one, which is empty.
        """
        arguments = ["-f", str(self.conf), "-N", node]
        if without is None:
            self._daemon("slurmd", *arguments)
            return
        me = (
            []
            if os.getuid() == 0
            else ["-U", f"--map-user={os.getuid()}", f"--map-group={os.getgid()}"]
        )
        inner = shlex.join(["unshare", *me, str(_program("slurmd")), *arguments])
        script = f"mount -t tmpfs none {shlex.quote(str(without))} && exec {inner}"
        self._daemon("unshare", "-m" if os.getuid() == 0 else "-Urm", "sh", "-c", script)

    def drain(self, node: str) -> None:
        """Nothing new starts there."""
        self.call("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")

    def resume(self, node: str) -> None:
        """Undo `drain`, or Slurm's judgement that a node is down."""
        self.call("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def cancel(self, *jobs_or_steps: str) -> None:
        """scancel."""
        self.call("scancel", *jobs_or_steps)

    def heal(self) -> None:
        """End all jobs, start what was killed, and wait until all nodes are idle again."""
        if running := self.jobs():
            self.cancel(*running)
        for node in NODES:
            if self._pid(f"slurmd-{node}") is None:
                self.start_slurmd(node)
        for node, state in self.nodes().items():
            if state.startswith(("drain", "drng", "down")):
                with contextlib.suppress(RuntimeError):  # it may just have come back by itself
                    self.resume(node)
        wait(lambda: set(self.nodes().values()) == {"idle"}, 60, "all nodes idle")

    def _write(self, owner: int | None) -> None:
        for folder in ("spool", "state", "log"):
            shutil.rmtree(self.root / folder, ignore_errors=True)  # of one that was here before
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        ports = registry.enter(self.name, self.root, 1 + len(NODES), owner=owner)
        (self.root / "name").write_text(self.name)
        for number in range(self.settings.gpus):
            gpu = self.root / f"gpu{number}"
            gpu.unlink(missing_ok=True)
            gpu.symlink_to("/dev/null")  # a device, so that Slurm sets CUDA_VISIBLE_DEVICES
        key = self.root / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        host = socket.gethostname().split(".")[0]
        text = template.slurm_conf(
            self.settings, name=self.name, root=self.root, host=host,
            user=getpass.getuser() if os.getuid() else "root", ports=ports,
        )  # fmt: skip
        self.conf.write_text(text)
        (self.root / "gres.conf").write_text(template.gres_conf(self.settings, self.root))
        (self.root / "job_submit.lua").write_text(template.JOB_SUBMIT)

    def _daemon(self, program: str, *arguments: str) -> None:
        found = _program(program)
        assert found is not None, program
        done = subprocess.run(
            [found, *arguments], env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60, cwd=self.root,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} does not start: {done.stderr.strip()}")

    def _pid(self, daemon: str) -> int | None:
        """Of a daemon that lives, by its pid file; never one that only got its number."""
        try:
            pid = int((self.root / f"{daemon}.pid").read_text())
        except (OSError, ValueError):
            return None
        command = " ".join(processes.command(pid))
        return pid if daemon.split("-")[0] in command and str(self.root) in command else None

    def _daemons_of(self, node: str) -> set[int]:
        """slurmd and slurmstepds of a node: they write to its log."""
        return processes.holders(self.root / "log" / f"slurmd-{node}.log")

    def _is_srun(self, pid: int, argument: str) -> bool:
        words = processes.command(pid)
        if not words or Path(words[0]).name != "srun" or argument not in words:
            return False
        return pid in processes.with_environment(f"SLURM_CONF={self.conf}")


def sweep() -> None:
    """Take down the clusters whose owner has ended without doing so."""
    for root in registry.abandoned():
        Cluster(root).down()


def wait(
    happened: Callable[[], object], limit_s: float, what: str, *, every_s: float = 0.2
) -> None:
    """Until something is true. Raises TimeoutError."""
    deadline = time.monotonic() + limit_s
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {limit_s:g} s: {what}")
        time.sleep(every_s)


def _kill(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="A Slurm of six nodes on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start one in a directory")
    up.add_argument("directory", type=Path)
    up.add_argument("--variant", choices=template.VARIANTS, default="default")
    down = commands.add_parser("down", help="end it and all that runs on it")
    down.add_argument("directory", type=Path)
    commands.add_parser("sweep", help="end those that interrupted tests left behind")
    given = parser.parse_args(arguments)
    if given.command == "up":
        cluster = Cluster(given.directory, template.VARIANTS[given.variant])
        cluster.up()
        print(f"export SLURM_CONF={cluster.conf}")
    elif given.command == "down":
        Cluster(given.directory).down()
    else:
        sweep()


if __name__ == "__main__":
    main()
