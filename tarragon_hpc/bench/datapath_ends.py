"""The two ends that `bench datapath` measures between: a REFE here, an echo EW in a process."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, NamedTuple

from tarragon_hpc.bench.raw_medium import HOST, make_floor
from tarragon_hpc.datapath.ert import ERT
from tarragon_hpc.datapath.refe import Refe
from tarragon_hpc.transport.auto import make_connector
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.wire import dispatch as wire
from tarragon_hpc.wire.common import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tarragon_hpc.bench.raw_medium import Floor
    from tarragon_hpc.config.schema import TransportConfig
    from tarragon_hpc.transport.rdma_ports import Port

ROWS = (1, 32, 256)
HIDDEN = 4096
EXPERTS = 8
ITEMSIZE = 2


class Ends(NamedTuple):
    """Ready to measure."""

    refe: Refe
    floor: Floor
    cpus: tuple[int, int] | None


@contextlib.contextmanager
def both_ends(config: TransportConfig, port: Port | None) -> Iterator[Ends]:
    """The echo EW in a process of its own, on a CPU of its own if there are two.

    config: `kind` is one transport; port: of RDMA
    """
    allowed = os.sched_getaffinity(0)
    first, *others = sorted(allowed)
    cpus = (first, others[0]) if others else None
    most = wire.slot_geometry(max(ROWS), 1, EXPERTS, HIDDEN, ITEMSIZE)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="tarragon-bench-"))
        secret = secrets.token_bytes(32)
        floor = make_floor(
            config.kind, stack, most=most, spin_us=config.spin_us, port=port, cpus=cpus
        )
        options = {
            "transport": config.model_dump(mode="json"),
            "host": HOST,
            "directory": directory,
            "secret": secret.hex(),
            "cpu": cpus[1] if cpus else None,
            "experts": EXPERTS,
            "hidden": HIDDEN,
            "floor": floor.options,
        }
        peer = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "tarragon_hpc.bench.echo_peer", json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=floor.fds,
            )
        )
        assert peer.stdout is not None
        line = peer.stdout.readline()
        if not line:
            raise RuntimeError(f"the echo EW ended with status {peer.wait()}")
        if cpus:
            os.sched_setaffinity(0, {cpus[0]})
            stack.callback(os.sched_setaffinity, 0, allowed)
        bell = ProcessDoorbell(config.spin_us)
        stack.callback(bell.close)
        connector = make_connector(config, worker="aw0", incarnation=1, secret=secret, bell=bell)
        refe = Refe(
            worker="aw0",
            incarnation=1,
            connector=connector,
            bell=bell,
            experts=EXPERTS,
            top_k=1,
            hidden=HIDDEN,
            dtype="bfloat16",
            slot_rows=max(ROWS),
        )
        stack.callback(refe.close)
        down = refe.apply_table(
            ERT.of(1, [["ew0"]] * EXPERTS), {"ew0": Peer("ew0", 1, json.loads(line))}
        )
        if down:
            raise RuntimeError(f"the echo EW cannot be reached: {down}")
        yield Ends(refe, floor, cpus)
