"""What an AW sees of the death of another node (tests/rdma/test_node_death.py).

`node_death.py ew`, on one node, prints the address of an EW and serves. `node_death.py aw ADDRESS`,
on the other, sends rows to it, prints `asking`, and then how it went when the other node died.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time

from tarragon_hpc.bench.echo_peer import EchoBank, echo_spec
from tarragon_hpc.config.schema import BatchingConfig
from tarragon_hpc.datapath.ert import ERT
from tarragon_hpc.datapath.refe import Refe
from tarragon_hpc.datapath.report import Failover
from tarragon_hpc.expert.server import ExpertServer
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.transport.rdma import RdmaListener
from tarragon_hpc.wire.common import Peer
from tests.conformance.peer import SECRET
from tests.conformance.world_rdma import CLIENTS, WIRE, port_of
from tests.rdma.in_guest.refe_failures import (
    EW,
    EXPERTS,
    HIDDEN,
    RDMA,
    SLACK_S,
    TOP_K,
    UNREACHABLE_S,
    Batch,
    Either,
    late_s,
)

LOST = "unreachable (RETRY_EXC_ERR)"
PATIENCE_S = 60.0  # until somebody kills the node


def serve():
    bell = ProcessDoorbell()
    listener = RdmaListener("10.77.0.2", port_of(CLIENTS), RDMA, "ew0", 1, SECRET, bell)
    bank, spec = EchoBank(EXPERTS, HIDDEN * 2), echo_spec(EXPERTS, TOP_K, HIDDEN)
    print(json.dumps({"address": listener.address()}), flush=True)
    ExpertServer(bank, listener, bell, spec, 1, BatchingConfig(max_window_us=0)).serve()


def ask(address, other):
    reports = []
    bell = ProcessDoorbell()
    refe = Refe(
        worker="aw0", incarnation=1, connector=Either("aw0", 1, SECRET, bell), bell=bell,
        experts=EXPERTS, top_k=TOP_K, hidden=HIDDEN, dtype="bfloat16", report=reports.append,
    )  # fmt: skip
    candidates = [["ew0", "ew1"], ["ew1", "ew0"]] * (EXPERTS // 2)
    peers = {"ew0": Peer("ew0", 1, address), "ew1": other.start()}
    down = refe.apply_table(ERT.of(1, candidates), peers)
    batch = Batch()
    right = [batch.combine(refe, batch.dispatch(refe)) for _ in range(50)]
    channel = refe.links.channels["ew0"]
    late = late_s()
    print(json.dumps({"asking": channel.lost is None}), flush=True)

    # The death falls into one of these, and nobody here knows when: the longest was hit by it.
    took, end = [], time.monotonic() + PATIENCE_S
    while channel.lost is None and time.monotonic() < end:
        begin = time.monotonic()
        right.append(batch.combine(refe, batch.dispatch(refe)))
        took.append(time.monotonic() - begin)
    lost = channel.lost
    right += [batch.combine(refe, batch.dispatch(refe)) for _ in range(5)]
    allowed_s = UNREACHABLE_S + SLACK_S + late
    refe.close()
    problems = [
        text
        for text, wrong in (
            (f"not connected: {down}", bool(down)),
            ("wrong sums", not all(right)),
            (f"lost: {lost}; expected: {LOST}", lost != LOST),
            (f"answered after {max(took):.3f} s", max(took) > allowed_s),
            ("no failover was told", not any(isinstance(r, Failover) for r in reports)),
        )
        if wrong
    ]
    outcome = {"case": "node death", "lost": lost, "answered_s": max(took), "batches": len(took)}
    print(json.dumps(outcome | {"allowed_s": allowed_s, "problems": problems}), flush=True)


def main(role, address=None):
    subprocess.run(["sh", str(WIRE), "join", "1" if role == "aw" else "2"], check=True)
    if role == "ew":
        serve()
        return
    with tempfile.TemporaryDirectory() as directory:
        other = EW("ew1", "shm", directory)
        ask(json.loads(address), other)
        other.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
