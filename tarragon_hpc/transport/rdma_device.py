"""The RDMA ports that this process has opened: one device context each, whoever uses it."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from tarragon_hpc.transport import _verbs
from tarragon_hpc.transport.rdma_pump import RdmaPump

if TYPE_CHECKING:
    from tarragon_hpc.transport.rdma_ports import Port

_lock = threading.Lock()
_opened: weakref.WeakValueDictionary[tuple[str, int, int | None], OpenPort] = (
    weakref.WeakValueDictionary()
)


class OpenPort:
    """A port and the pump of all links through it. Closed with the last reference to it.

    fabric: see `rdma_ports.Port`
    """

    def __init__(self, port: Port) -> None:
        """Raises ConfigError."""
        self.device = _verbs.Device(port)
        self.fabric = port.fabric
        self.pump = RdmaPump(f"rdma-{port.device}")

    def __repr__(self) -> str:
        return f"OpenPort({self.device}, {self.pump})"


def open_port(port: Port) -> OpenPort:
    """Open it, or share it. Raises ConfigError."""
    key = (port.device, port.port, port.gid_index)
    with _lock:
        found = _opened.get(key)
        if found is None:
            found = _opened[key] = OpenPort(port)
        return found
