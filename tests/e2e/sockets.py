"""What the processes of a service are connected to, as the kernel tells it; and what they may be.

A worker talks to the head, to its peers of the data plane over the listeners that it told the head
of, and to its own children. Whatever else it has open (a store of torch.distributed, a mesh of
gloo, MPI's or NCCL's bootstrap) would tie its life to others'.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

_USERS = re.compile(r'\("[^"]*",pid=(\d+),fd=\d+\)')
_LIBRARIES = re.compile(r"/[^ \n]*lib(mpi|pmi|pmix|nccl|rccl|ucc|oshmem)[a-z_]*\.so[^ \n]*")
_RANKS = re.compile(
    r"(RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT|(OMPI|PMI|PMIX|I_MPI|MPI)_.*)=(.*)"
)


class Socket(NamedTuple):
    """One socket. `pids`: who has it open. `local`, `peer`: for TCP and UDP address:port, for Unix
    sockets the path or *, then the inode.
    """

    kind: str
    state: str
    local: str
    peer: str
    pids: frozenset[int]


def open_sockets() -> list[Socket]:
    """Of all processes of this network namespace, Unix sockets and raw ones included."""
    found = []
    for options in ("-Htunwap", "-Hxap"):
        done = subprocess.run(["ss", options], capture_output=True, text=True, check=True)
        for line in done.stdout.splitlines():
            kind, state, _, _, *rest = line.split(maxsplit=8)
            if options == "-Hxap":
                local, peer = f"{rest[0]} {rest[1]}", f"{rest[2]} {rest[3]}"
            else:
                local, peer = rest[0], rest[1]
            pids = frozenset(map(int, _USERS.findall(line)))
            found.append(Socket(kind, state, local, peer, pids))
    return found


def strangers(
    sockets: list[Socket], workers: dict[str, int], head: int, doors: set[str]
) -> list[str]:
    """What the workers have open that they should not: one line each. Pure.

    workers: pids by name; head: its pid. doors: where the head and the workers say that they
    listen: address:port, or the file name of a Unix socket.
    """
    by_inode = {s.local.split()[-1]: s for s in sockets if _unix(s)}
    inside = {head, *workers.values()}
    wrong = []
    for name, pid in workers.items():
        for s in (s for s in sockets if pid in s.pids):
            if s.kind == "tcp":
                fine = s.local in doors or (s.state != "LISTEN" and s.peer in doors)
            elif _unix(s) and s.state == "LISTEN":
                fine = _file(s) in doors
            elif _unix(s):
                fine = _unix_connection(s, by_inode.get(s.peer.split()[-1]), pid, inside, doors)
            else:
                fine = False
            if not fine:
                wrong.append(f"{name}: {s.kind} {s.state} {s.local} to {s.peer}")
    return wrong


def _unix_connection(
    s: Socket, other: Socket | None, pid: int, inside: set[int], doors: set[str]
) -> bool:
    if other is None or not other.pids:
        return False  # nobody of this namespace
    with_itself = other.pids <= {pid}
    with_peers = other.pids <= inside and bool({_file(s), _file(other)} & doors)
    with_its_parent = other.pids <= inside and _file(s) == _file(other) == "*"
    return with_itself or with_peers or with_its_parent


def _unix(s: Socket) -> bool:
    return s.kind.startswith("u_")


def _file(s: Socket) -> str:
    """Of its path, which may be a short cut to the directory."""
    return s.local.rsplit(maxsplit=1)[0].rpartition("/")[2]


def collective_libraries(pid: int) -> set[str]:
    """What a process has mapped of MPI's and NCCL's kind."""
    return {m.group() for m in _LIBRARIES.finditer(Path(f"/proc/{pid}/maps").read_text())}


def ranks(pid: int) -> list[str]:
    """What its environment says of a rank, a size or a master."""
    lines = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return [line for line in lines if _RANKS.fullmatch(line)]
