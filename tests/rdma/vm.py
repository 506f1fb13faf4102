"""A virtual machine over this machine's root file system, to run commands under another kernel.

The guest sees this checkout and this interpreter at the same paths; what it writes goes to its
memory, but for `/jobs`. QEMU interprets (TCG): it needs no privilege and is 10 to 30 times slower.
"""

from __future__ import annotations

import contextlib
import shlex
import socket
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from tests.rdma.clock import kernel_argument
from tests.rdma.prepare import PYVERBS, prepare

ROOT = Path(__file__).parents[2]
_GRACE_S = 20.0
_KERNEL = "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class GuestLost(Exception):
    """The guest did not do in time what it was told, and was ended; the message has its output."""


@dataclass(frozen=True)
class Done:
    """How a job ended: `status` as a shell gives it (124: at its deadline), `output` of both."""

    status: int
    output: str
    seconds: float


@dataclass(frozen=True)
class Job:
    """A command on its way; `folder` is `/jobs/<name>` in the guest."""

    name: str
    folder: Path
    deadline_s: float
    started: float


class Guest:
    """One virtual machine; runs jobs one after the other. Close it.

    wire, end: a folder, and which end of the wire there is this guest's (1 or 2): a network card
    joined to the guest at the other end

    Raises `Unprepared`; the other methods raise `GuestLost`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        cpus: int = 2,
        memory_mib: int = 2048,
        wire: Path | None = None,
        end: int = 1,
        boot_s: float = 120.0,  # 5 s on an idle machine
    ) -> None:
        self.directory = directory
        self._console = directory / "console"
        self._boots_until: float | None = time.monotonic() + boot_s
        self._count = 0
        boot = prepare()
        self._line, theirs = socket.socketpair()
        with theirs, (directory / "qemu").open("w") as errors:
            self._process = subprocess.Popen(
                [
                    # its life hangs on ours, even if we are killed
                    *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
                    *("-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"),
                    *("-smp", str(cpus), "-m", str(memory_mib)),
                    *("-nodefaults", "-no-reboot", "-display", "none"),
                    *("-kernel", str(boot / "vmlinuz"), "-initrd", str(boot / "initrd")),
                    *("-append", f"{_KERNEL} {kernel_argument()}"),
                    *("-serial", f"file:{self._console}"),
                    *("-chardev", f"socket,id=jobs,fd={theirs.fileno()}"),
                    *("-serial", "chardev:jobs"),
                    *_shared("root", Path("/"), ",readonly=on"),
                    *_shared("jobs", directory),
                    *(_card(wire, end) if wire else ()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    @property
    def pid(self) -> int:
        """Of QEMU."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can be given jobs."""
        return self._process.poll() is None

    def run(self, command: list[str], deadline_s: float, **more: str) -> Done:
        """Run a command in the checkout, as root, with the interpreter's programs in PATH."""
        return self.wait(self.start(command, deadline_s, **more))

    def start(self, command: list[str], deadline_s: float, **more: str) -> Job:
        """Hand over a command without waiting for its end; wait for the end of the boot, though."""
        if self._boots_until is not None:
            self._read(self._boots_until, "boot")
            self._boots_until = None
            self._add_pyverbs()
        self._count += 1
        job = Job(str(self._count), self.directory / str(self._count), deadline_s, time.monotonic())
        job.folder.mkdir()
        # not the interpreter's real path: its place says which packages it has
        path = f"{Path(sys.executable).parent}:{_PATH}"
        env = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "TMPDIR": "/run/tmp"}
        env |= {"TARRAGON_IN_GUEST": "1"} | more
        pairs = shlex.join(f"{key}={value}" for key, value in env.items())
        (job.folder / "run").write_text(
            f"cd {shlex.quote(str(ROOT))} || exit\n"
            f"exec env -i {pairs} timeout -k 3 {deadline_s} {shlex.join(command)}\n"
        )
        with contextlib.suppress(OSError):  # dead: `wait` says so
            self._line.sendall(f"{job.name}\n".encode())
        return job

    def wait(self, job: Job) -> Done:
        """The end of the job that was started last."""
        end = job.started + job.deadline_s + _GRACE_S
        name, status = self._read(end, f"job {job.name}", job.folder / "output").split()
        assert name == job.name
        output = (job.folder / "output").read_text(errors="replace")
        return Done(int(status), output, time.monotonic() - job.started)

    def close(self) -> None:
        """End it at once, as a power cut does."""
        self._process.kill()
        self._process.wait()
        self._line.close()

    def _add_pyverbs(self) -> None:
        """Debian's pyverbs becomes a package of this interpreter, in the guest only."""
        link = Path(sysconfig.get_path("purelib")) / PYVERBS.name
        if not link.exists():
            done = self.run(["ln", "-s", str(PYVERBS), str(link)], 20)
            assert done.status == 0, done.output

    def _read(self, end: float, what: str, output: Path | None = None) -> str:
        """A line from the guest; if none comes in time it is ended."""
        line = b""
        while not line.endswith(b"\n"):
            self._line.settimeout(max(end - time.monotonic(), 0.001))
            try:
                data = self._line.recv(256)
            except OSError:
                data = b""
            if not data:
                self.close()
                texts = [f.read_text(errors="replace")[-4000:] for f in self._files(output)]
                raise GuestLost("\n".join([f"the guest was lost in {what}", *texts]))
            line += data
        return line.decode().strip()

    def _files(self, output: Path | None) -> list[Path]:
        files = (self.directory / "qemu", self._console, output)
        return [file for file in files if file is not None and file.exists()]


def _shared(name: str, path: Path, options: str = "") -> list[str]:
    """A directory of this machine that the guest mounts by that name."""
    source = f"local,id={name},path={path},security_model=none,multidevs=remap{options}"
    return ["-fsdev", source, "-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"]


def _card(wire: Path, end: int) -> list[str]:
    """A network card whose frames are datagrams between two Unix sockets."""
    here, there = wire / str(end), wire / str(3 - end)
    ends = f"local.type=unix,local.path={here},remote.type=unix,remote.path={there}"
    device = f"virtio-net-pci,netdev=wire,mac=52:54:00:00:00:0{end},host_mtu=4200"
    return ["-netdev", f"dgram,id=wire,{ends}", "-device", device]
