from __future__ import annotations

import pytest

from tarragon_hpc.config.schema import RdmaConfig
from tarragon_hpc.transport.rdma_ports import Port, choose_port
from tests.unit.fake_sysfs import IB, IPV4, LINK, ZERO, Sysfs


@pytest.fixture
def sysfs(tmp_path):
    return Sysfs(tmp_path)


def test_an_infiniband_port(sysfs):
    sysfs.ib("mlx5_0", rate="400 Gb/sec (4X NDR)")
    (port,) = sysfs.ports()
    assert port.usable
    assert (port.device, port.port, port.state, port.link_layer) == (
        "mlx5_0", 1, "ACTIVE", "InfiniBand",
    )  # fmt: skip
    assert (port.gid_index, port.gid, port.lid, port.rate) == (0, IB, 0x1A, 400.0)
    assert (port.mtu, port.netdev) == (None, None)
    assert port.fabric == "ib:fe80000000000001"


def test_a_roce_port_uses_version_2_over_ipv4(sysfs):
    sysfs.roce("mlx5_0")
    (port,) = sysfs.ports()
    assert (port.gid_index, port.gid, port.netdev, port.mtu) == (4, IPV4, "eth0", 4096)
    assert [gid.index for gid in port.gids] == [0, 1, 3, 4]
    assert port.gids[3].ipv4 == "10.77.0.1"
    assert port.fabric == "roce"


@pytest.mark.parametrize(("kinds", "index"), [(["v1", "v2"], 1), (["v1", "v1"], 0)])
def test_a_roce_port_without_ipv4(sysfs, kinds, index):
    names = {"v1": "IB/RoCE v1", "v2": "RoCE v2"}
    sysfs.port("rxe0", 1, "Ethernet", [(LINK, names[kind], "eth0") for kind in kinds])
    assert sysfs.choose().gid_index == index


@pytest.mark.parametrize(
    ("frame", "mtu"), [(9000, 4096), (4200, 4096), (4191, 2048), (1500, 1024), (68, None)]
)
def test_the_packet_of_a_roce_port_fits_a_frame(sysfs, frame, mtu):
    sysfs.roce("rxe0")
    sysfs.write("net/eth0/mtu", frame)
    assert sysfs.choose().mtu == mtu


def test_infiniband_goes_before_roce_and_the_faster_first(sysfs):
    sysfs.roce("mlx5_0", rate="400 Gb/sec (4X NDR)")
    sysfs.ib("mlx5_1", state="1: DOWN")
    sysfs.ib("mlx5_2", rate="100 Gb/sec (4X EDR)")
    sysfs.ib("mlx5_10", rate="200 Gb/sec (4X HDR)")
    sysfs.ib("mlx5_11", rate="200 Gb/sec (4X HDR)")
    assert [p.device[5:] for p in sysfs.ports()] == ["0", "1", "2", "10", "11"]
    assert sysfs.choose().device == "mlx5_10"


def test_settings_are_honoured(sysfs):
    sysfs.ib("mlx5_0")
    sysfs.roce("mlx5_1", 1)
    sysfs.roce("mlx5_1", 2)
    assert sysfs.choose(device="mlx5_1").port == 1
    assert sysfs.choose(device="mlx5_1", port=2).port == 2
    assert sysfs.choose(port=2).device == "mlx5_1"
    chosen = sysfs.choose(device="mlx5_1", gid_index=1)
    assert (chosen.gid_index, chosen.gid) == (1, LINK)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"device": "mlx5_9"},
            "transport.rdma.device: mlx5_9: no such device; there are mlx5_0, rxe0",
        ),
        (
            {"device": "mlx5_0", "port": 3},
            "transport.rdma.port: 3: no such port; there are mlx5_0 port 1",
        ),
        (
            {"device": "mlx5_0", "gid_index": 2},
            "transport.rdma.gid_index: 2: mlx5_0 port 1 has no GID there; it has 0, 1, 3, 4",
        ),
        ({"device": "rxe0"}, "rxe0 port 1 is DOWN"),
    ],
)
def test_the_setting_to_blame_is_named(sysfs, settings, reason):
    sysfs.roce("mlx5_0")
    sysfs.roce("rxe0", state="1: DOWN")
    assert sysfs.choose(**settings) == reason


def test_a_machine_without_devices(sysfs):
    assert sysfs.ports() == []
    assert sysfs.choose() == "no RDMA device in /sys/class/infiniband"
    assert sysfs.choose(device="mlx5_0") == (
        "transport.rdma.device: mlx5_0: no such device; /sys/class/infiniband has none"
    )


def test_every_port_that_is_of_no_use_says_why(sysfs):
    sysfs.ib("mlx5_0", state="2: INIT")
    sysfs.roce("cxgb4_0")
    sysfs.write("infiniband/cxgb4_0/node_type", "4: RNIC")
    sysfs.port("efa_0", 1, "Unspecified", [])
    sysfs.port("rxe0", 1, "Ethernet", [(ZERO, "", None)])
    assert sysfs.choose() == (
        "cxgb4_0 port 1 is iWARP, not InfiniBand or RoCE; "
        "efa_0 port 1 is Unspecified, not InfiniBand or RoCE; "
        "mlx5_0 port 1 is INIT; rxe0 port 1 has no GID"
    )


def test_a_device_that_may_not_be_opened(sysfs):
    sysfs.roce("rxe0")
    sysfs.write("infiniband_verbs/uverbs0/ibdev", "rxe0")
    node = sysfs.dev / "infiniband" / "uverbs0"
    assert sysfs.choose() == f"rxe0 port 1 cannot be opened: no access to {node}"
    node.parent.mkdir(parents=True)
    node.touch()
    assert sysfs.choose().device == "rxe0"


def test_files_that_are_not_as_expected_are_no_use_and_no_error(sysfs):
    sysfs.write("infiniband/bad0/ports/1/state", "")
    sysfs.write("infiniband/bad0/ports/junk/state", "4: ACTIVE")
    sysfs.port("bad1", 1, "Ethernet", [("nonsense", "RoCE v2", "eth0"), ("::1::", "", None)])
    sysfs.port("bad2", 1, "InfiniBand", [(IB, "", None)], rate="fast")
    sysfs.write("infiniband/bad2/ports/1/lid", "many")
    (sysfs.path / "class/infiniband/bad2/ports/1/state").write_bytes(b"\xff\xfe4: ACTIVE")
    sysfs.write("infiniband/bad3", "a file")
    ports = sysfs.ports()
    assert [(p.device, p.usable) for p in ports] == [
        ("bad0", False), ("bad1", False), ("bad2", False),
    ]  # fmt: skip
    assert (ports[2].lid, ports[2].rate) == (0, None)
    assert sysfs.choose() == (
        "bad0 port 1 is of an unknown link layer, not InfiniBand or RoCE; "
        "bad1 port 1 has no GID; bad2 port 1 is in an unknown state"
    )


def test_a_port_made_by_hand_needs_only_what_is_agreed():
    port = Port("rxe0", 1, "ACTIVE", "Ethernet", 1, IPV4, 0, 1024, "v0")
    assert choose_port([port], RdmaConfig()) is port
