from __future__ import annotations

import resource

import pytest

from tarragon_hpc.cli import doctor_network
from tarragon_hpc.cli.doctor_network import Network
from tarragon_hpc.cli.finding import Finding
from tarragon_hpc.transport.interfaces import Interface
from tests.unit.fake_sysfs import Sysfs

NO_PYVERBS = "ModuleNotFoundError: No module named 'pyverbs'"


@pytest.fixture
def sysfs(tmp_path):
    return Sysfs(tmp_path)


@pytest.fixture
def network(sysfs, monkeypatch):
    """Of a machine with that sysfs; `library` as the probe of pyverbs finds it."""

    def make(library=NO_PYVERBS):
        monkeypatch.setattr(doctor_network, "probe", lambda script: library)
        return Network(sysfs.path)

    return make


def library(*devices, version=""):
    return {"devices": list(devices), "version": version, "library": "1.14.44.0"}


def test_every_port_is_described(sysfs, network):
    sysfs.ib("mlx5_0", rate="400 Gb/sec (4X NDR)")
    sysfs.roce("mlx5_1")
    sysfs.roce("rxe0", state="1: DOWN")
    found = network().rdma()
    assert found.present
    assert found.detail.split("; ") == [
        "mlx5_0 port 1: ACTIVE, InfiniBand, GID 0 (fe80:0000:0000:0001:0002:c903:0000:1001), "
        "LID 26, 400 Gb/s",
        "mlx5_1 port 1: ACTIVE, RoCE, GID 4 (10.77.0.1 RoCE v2), MTU 4096, netdev eth0, 25 Gb/s",
        "rxe0 port 1: DOWN, RoCE, GID 4 (10.77.0.1 RoCE v2), MTU 4096, netdev eth0, 25 Gb/s",
    ]


def test_a_port_that_is_up_and_of_no_use_says_why(sysfs, network):
    sysfs.port("rxe0", 1, "Ethernet", [])
    found = network().rdma()
    assert found == Finding(False, "rxe0 port 1: ACTIVE but has no GID, RoCE, 25 Gb/s")


def test_ports_that_are_all_down(sysfs, network):
    sysfs.roce("rxe0", state="1: DOWN")
    assert not network().rdma().present


def test_no_device(sysfs, network):
    assert network().rdma() == Finding(False, f"no RDMA device in {sysfs.path}/class/infiniband")


@pytest.mark.parametrize(
    ("state", "found", "words"),
    [
        (
            "4: ACTIVE",
            library("rxe0"),
            "auto: rdma by rxe0 port 1, GID 4, to peers on the same fabric (roce); tcp to others",
        ),
        ("1: DOWN", library("rxe0"), "auto: tcp to other nodes: rxe0 port 1 is DOWN"),
        (
            "4: ACTIVE",
            NO_PYVERBS,
            "auto: tcp to other nodes: rxe0 port 1 is there, but not pyverbs (see verbs)",
        ),
        (
            "4: ACTIVE",
            library(),
            "auto: tcp to other nodes: libibverbs does not know rxe0; "
            "apt-get install ibverbs-providers",
        ),
    ],
)
def test_what_auto_uses(sysfs, network, state, found, words):
    sysfs.roce("rxe0", state=state)
    assert network(found).transport() == Finding(True, words)


def test_the_version_of_pyverbs(network):
    assert network(library()).verbs() == Finding(True, "pyverbs on libibverbs 1.14.44.0")
    assert network(library(version="59.0")).verbs().detail.startswith("pyverbs 59.0 on ")


def test_how_to_get_pyverbs(tmp_path, network, monkeypatch):
    monkeypatch.setattr(doctor_network, "_SYSTEM", (str(tmp_path / "python3*"),))
    monkeypatch.setattr(doctor_network.sysconfig, "get_config_var", lambda name: ".this.so")
    assert network().verbs() == Finding(
        False, f"{NO_PYVERBS}; apt-get install python3-pyverbs ibverbs-providers "
        "(RHEL: dnf install python3-pyverbs)"
    )  # fmt: skip
    package = tmp_path / "python3.12" / "pyverbs"
    package.mkdir(parents=True)
    (package / "device.other.so").touch()
    assert f"{package} is for another Python" in network().verbs().detail
    (package / "device.this.so").touch()
    assert f"; ln -s {package} " in network().verbs().detail


MANY, FEW = 4 << 30, 8 << 20


@pytest.mark.parametrize(
    ("limit", "capable", "devices", "found"),
    [
        (resource.RLIM_INFINITY, False, True, Finding(True, "no limit")),
        (FEW, True, True, Finding(True, "no limit")),
        (MANY, False, True, Finding(True, "ulimit -l is 4194304 KiB")),
        (
            FEW,
            False,
            False,
            Finding(True, "ulimit -l is 8192 KiB: little, but there is no RDMA device"),
        ),
    ],
)
def test_memory_that_may_be_locked(limit, capable, devices, found):
    assert doctor_network._memlock(limit, capable, devices) == found


def test_too_little_memory_may_be_locked():
    found = doctor_network._memlock(FEW, False, True)
    assert not found.present
    assert found.detail.startswith("ulimit -l is 8192 KiB, too little for RDMA; ask for ")


def test_interfaces(sysfs, network, monkeypatch):
    sysfs.write("net/ib0/speed", 200000)
    sysfs.write("net/eth0/speed", -1)
    there = [
        Interface("lo", ("127.0.0.1",), True),
        Interface("ib0", ("10.1.0.3", "fd00::3"), True),
        Interface("eth0", ("10.0.0.3",), False),
        Interface("eth1", (), True),
    ]
    monkeypatch.setattr(doctor_network, "read_interfaces", lambda: there)
    assert network().interfaces() == Finding(
        True,
        "ib0 10.1.0.3 fd00::3 200 Gb/s; eth0 10.0.0.3 (down) (transport.interface: NAME)",
    )
    del there[1:3]
    assert network().interfaces() == Finding(False, "no interface with an address but the loopback")
