"""What `tarragon doctor` says about the filesystem of run.root: a rendezvous is tried on it."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from pathlib import Path

from tarragon_hpc.cli.finding import Finding
from tarragon_hpc.cluster.directory import Directory, said
from tarragon_hpc.cluster.root import local_path
from tarragon_hpc.errors import ConfigError

# Types of mountinfo. Others exist: what is in neither list is not judged.
_SHARED = {
    *("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "wekafs", "panfs", "pvfs2", "afs"),
    *("cifs", "smb3", "9p", "virtiofs", "gfs2", "ocfs2", "fuse.ceph", "fuse.glusterfs"),
}
_OF_ONE_NODE = {
    *("tmpfs", "ramfs", "devtmpfs", "overlay", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs"),
    *("f2fs", "jfs", "reiserfs", "vfat", "exfat", "squashfs", "iso9660"),
}
_TIMES = 50
_OCTAL = 8


def run_root(root: str, backend: str, mountinfo: Path = Path("/proc/self/mountinfo")) -> Finding:
    """Whether runs can be kept there."""
    try:
        path = local_path(root)
    except ConfigError as error:
        return Finding(False, str(error))
    if path.exists() and not path.is_dir():
        return Finding(False, f"{path}: is not a directory")
    there = next(p for p in (path, *path.parents) if p.is_dir())
    kind = filesystem(there, mountinfo.read_text())
    try:
        with tempfile.TemporaryDirectory(prefix=".tarragon-doctor-", dir=there) as scratch:
            problem = _try(Directory(Path(scratch)))
    except OSError as error:
        problem = said(error)
    free = f"{shutil.disk_usage(there).free / 2**30:.1f} GiB free"
    where = f"{path}: {kind}, {free}"
    if problem is not None:
        return Finding(False, f"{where}: {problem}")
    if backend != "local" and kind in _OF_ONE_NODE:
        return Finding(False, f"{where}: is of this node only, and workers are started on others")
    reach = "of several nodes" if kind in _SHARED else "of this node only"
    if kind not in _SHARED | _OF_ONE_NODE:
        reach = "whether other nodes see it is not known"
    return Finding(True, f"{where}; {reach}; exclusive create, atomic replace and fsync work")


def filesystem(path: Path, mountinfo: str) -> str:
    """The type of the filesystem that a directory is on, by the lines of proc(5) mountinfo."""
    parts = Path(os.path.realpath(path)).parts
    best, kind = 0, "unknown"
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        mounted = Path(_plain(left.split()[4])).parts
        # The last of those that are mounted on one another is the one that is seen.
        if len(mounted) >= best and parts[: len(mounted)] == mounted:
            best, kind = len(mounted), right.split()[0]
    return kind


def _try(directory: Directory) -> str | None:
    """What a rendezvous needs and does not get, or None. Raises OSError."""
    if not directory.claim("claim", "first") or directory.claim("claim", "second"):
        return "exclusive create does not work: two processes could be the same worker"
    texts = [bytes([number]) * 4096 for number in range(_TIMES)]
    directory.write("record", texts[0])
    done = threading.Event()
    torn: list[str] = []

    def read() -> None:
        while not done.is_set() and not torn:
            try:
                data = directory.read("record", 1 << 16)
            except OSError as error:
                torn.append(said(error))
            else:
                torn.extend(["half of it was read"] * (data not in texts))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for text in texts:
            directory.write("record", text)
    finally:
        done.set()
        reader.join()
    return f"a file is not replaced atomically: {torn[0]}" if torn else None


def _plain(text: str) -> str:
    """A path of mountinfo without its escapes: space is written \\040."""
    first, *rest = text.split("\\")
    return first + "".join(chr(int(part[:3], _OCTAL)) + part[3:] for part in rest)
