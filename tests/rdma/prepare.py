"""The guest's kernel and initrd, made once: Debian's kernel has what the tests need (rxe, netem).

`python tests/rdma/prepare.py --install` gets the packages and makes them; the tests make them too
if the packages are there.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

KERNEL = "linux-image-amd64"
MODULES = (
    "virtio_pci virtio_net 9pnet_virtio 9p overlay crc32_generic rdma_rxe veth sch_netem".split()
)
PYVERBS = Path("/usr/lib/python3/dist-packages/pyverbs")
INIT = Path(__file__).with_name("init.sh")
# Of 3,500 modules, those in these folders are looked at.
_FOLDERS = re.compile(r"kernel/(crypto|fs|lib|net|drivers/(char|infiniband|net|virtio))/")


class Unprepared(Exception):
    """This machine cannot boot the guest; the message says what to do."""


def missing() -> list[str]:
    """Debian packages that have to be installed first."""
    there = {
        "qemu-system-x86": shutil.which("qemu-system-x86_64"),
        "busybox-static": _static(shutil.which("busybox")),
        "iproute2": shutil.which("rdma"),
        "python3-pyverbs": PYVERBS.is_dir(),
        "ibverbs-providers": list(Path("/usr/lib").glob("*/libibverbs/librxe*.so")),
    }
    return [package for package, found in there.items() if not found]


def prepare() -> Path:
    """The folder with `vmlinuz` and `initrd`; made if it is not there.

    Raises `Unprepared`.
    """
    if missing():
        raise Unprepared(
            f"the RDMA tests need Debian's packages {', '.join(missing())}: "
            "run `python tests/rdma/prepare.py --install`, or skip them with TARRAGON_NO_GUEST=1"
        )
    if not (PYVERBS / f"device{sysconfig.get_config_var('EXT_SUFFIX')}").exists():
        theirs = ", ".join(sorted(p.name for p in PYVERBS.glob("device.*.so")))
        raise Unprepared(f"{PYVERBS} is for another Python than this one: {theirs}")
    recipe = hashlib.sha256(INIT.read_bytes() + Path(__file__).read_bytes())
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    made = caches / "tarragon-hpc" / f"guest-{recipe.hexdigest()[:12]}"
    if not made.is_dir():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
            building = Path(scratch) / "guest"
            building.mkdir()
            _build(_download(Path(scratch)), building)
            building.rename(made)
    return made


def _static(program: str | None) -> bool:
    """It is there and needs no library, which the initrd has none of."""
    return program is not None and b"ld-linux" not in Path(program).read_bytes()[:4096]


def _download(folder: Path) -> Path:
    """The package of the kernel that Debian's metapackage stands for."""
    depends = _run("apt-cache", "depends", KERNEL)
    package = re.search(r"Depends: (linux-image-\S+)", depends)
    if package is None:
        raise Unprepared(f"apt knows no {KERNEL}, the kernel of Debian: run `apt-get update`")
    folder.chmod(0o755)  # apt downloads as a user of its own
    _run("apt-get", "download", "-qq", package[1], cwd=folder)
    return next(folder.glob("*.deb"))


def _build(package: Path, made: Path) -> None:
    """Take the kernel and the modules out of the package, and pack the initrd."""
    modules: dict[str, bytes] = {}
    with (
        subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE
        ) as unpacking,
        tarfile.open(fileobj=unpacking.stdout, mode="r|") as tar,
    ):
        for member in tar:
            path = PurePosixPath(member.name)
            if path.name.startswith("vmlinuz-"):
                (made / "vmlinuz").write_bytes(tar.extractfile(member).read())
            elif ".ko" in path.suffixes and _FOLDERS.search(member.name):
                data = tar.extractfile(member).read()
                data = lzma.decompress(data) if path.suffix == ".xz" else data
                modules[path.name.partition(".")[0].replace("-", "_")] = data
    files = {"init": INIT.read_bytes(), "bin/busybox": Path(shutil.which("busybox")).read_bytes()}
    for position, name in enumerate(_in_order(MODULES, modules)):
        files[f"modules/{position:02}-{name}.ko"] = modules[name]
    (made / "initrd").write_bytes(gzip.compress(_cpio(files), 1))


def _in_order(wanted: list[str], modules: dict[str, bytes]) -> list[str]:
    """The modules and those they depend on, which go first."""
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name not in modules:  # not there: compiled in
            return
        depends = re.search(rb"\0depends=([^\0]*)\0", modules[name])
        for other in depends[1].decode().replace("-", "_").split(",") if depends else []:
            add(other)
        order.append(name)

    for name in wanted:
        add(name)
    return order


def _cpio(files: dict[str, bytes]) -> bytes:
    """An archive in the kernel's "newc" format (Documentation/driver-api/early-userspace)."""
    folders = ("bin", "dev", "modules", "proc")
    entries = [(name, 0o40755, b"") for name in folders]
    entries += [(name, 0o100755, data) for name, data in files.items()]
    parts = []
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")]):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08x" % f for f in fields) + name.encode() + b"\0"
        parts += [header, bytes(-len(header) % 4), data, bytes(-len(data) % 4)]
    return b"".join(parts)


def _run(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    except FileNotFoundError:
        raise Unprepared(f"no {command[0]}: the RDMA tests need Debian's packages") from None
    if done.returncode:
        raise Unprepared(f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def _install() -> None:
    """Get what is missing, and apt's lists of what there is."""
    sudo = [] if os.getuid() == 0 else ["sudo"]
    _run(*sudo, "apt-get", "update", "-qq")
    needed = missing()
    if needed:
        _run(*sudo, "apt-get", "install", "-qqy", "--no-install-recommends", *needed)


def main(install: bool) -> Path:
    """As `prepare`; install: what that takes, if it is not there."""
    try:
        return prepare()
    except Unprepared:
        if not install:
            raise
    _install()
    return prepare()


if __name__ == "__main__":
    try:
        print(main("--install" in sys.argv[1:]))
    except Unprepared as error:
        sys.exit(f"error: {error}")
