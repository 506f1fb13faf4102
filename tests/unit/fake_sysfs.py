"""RDMA devices as the kernel shows them, without any."""

from __future__ import annotations

from tarragon_hpc.config.schema import RdmaConfig
from tarragon_hpc.transport.rdma_ports import choose_port, find_ports

ZERO = "0000:0000:0000:0000:0000:0000:0000:0000"
IB = "fe80:0000:0000:0001:0002:c903:0000:1001"
LINK = "fe80:0000:0000:0000:5054:00ff:fe00:0001"
IPV4 = "0000:0000:0000:0000:0000:ffff:0a4d:0001"


class Sysfs:
    """A tree such as the kernel's, in a directory of the test."""

    def __init__(self, path):
        self.path = path
        self.dev = path / "dev"

    def write(self, name, text):
        file = self.path / "class" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def port(self, device, number, layer, gids, *, state="4: ACTIVE", rate="25 Gb/sec (1X EDR)"):
        """`gids`: (address, kind, netdev) by index."""
        top = f"infiniband/{device}/ports/{number}"
        for name, text in {
            "state": state,
            "link_layer": layer,
            "lid": "0x1a" if layer == "InfiniBand" else "0x0",
            "rate": rate,
        }.items():
            self.write(f"{top}/{name}", text)
        for index, (address, kind, netdev) in enumerate(gids):
            self.write(f"{top}/gids/{index}", address)
            if kind:
                self.write(f"{top}/gid_attrs/types/{index}", kind)
            if netdev:
                self.write(f"{top}/gid_attrs/ndevs/{index}", netdev)
                self.write(f"net/{netdev}/mtu", 9000)

    def ib(self, device, number=1, **more):
        gids = [(IB, "IB/RoCE v1", None), (ZERO, "", None)]
        self.port(device, number, "InfiniBand", gids, **more)

    def roce(self, device, number=1, **more):
        gids = [
            (LINK, "IB/RoCE v1", "eth0"),
            (LINK, "RoCE v2", "eth0"),
            (ZERO, "", None),
            (IPV4, "IB/RoCE v1", "eth0"),
            (IPV4, "RoCE v2", "eth0"),
        ]
        self.port(device, number, "Ethernet", gids, **more)

    def ports(self):
        return find_ports(self.path, self.dev)

    def choose(self, **settings):
        return choose_port(self.ports(), RdmaConfig(**settings))
