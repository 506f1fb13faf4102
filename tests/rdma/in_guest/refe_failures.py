"""A REFE over RDMA, two EWs, and what can go wrong with one of them while it owes a reply.

`refe_failures.py [CASE…]` prints one line of JSON for each case and exits with 1 if one is not as
it should be. In the guest, with the wire laid. The settings are the defaults: what is measured is
what users get.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from tarragon_hpc.bench.echo_peer import EchoBank, echo_spec
from tarragon_hpc.config.schema import BatchingConfig, RdmaConfig
from tarragon_hpc.datapath.ert import ERT
from tarragon_hpc.datapath.refe import Refe
from tarragon_hpc.datapath.report import Failover
from tarragon_hpc.expert.server import ExpertServer
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.transport.rdma import RdmaConnector, RdmaListener
from tarragon_hpc.transport.shm import ShmConnector, ShmListener
from tarragon_hpc.wire.common import Peer
from tests.conformance.peer import SECRET
from tests.conformance.world_rdma import CLIENTS, HOST, SERVERS, WIRE, port_of

assert "torch" not in sys.modules
EXPERTS, TOP_K, HIDDEN, ROWS = 8, 2, 256, 16
RDMA = RdmaConfig()
UNREACHABLE_S = 4.096e-6 * 2**RDMA.timeout * (RDMA.retries + 1)
SLACK_S = 0.05  # on a machine with nothing else to do: see `late_s`
GONE = "process gone (connection closed)"
FAILED = ("unreachable (RETRY_EXC_ERR)", "unreachable (LOC_QP_OP_ERR)")
# What happens → transport of the other EW, what the loss may be put down to.
CASES = {
    "kill": ("rdma", (GONE,)),
    "cut": ("shm", FAILED),
    "silence": ("shm", FAILED),
    "stop": ("rdma", ()),  # its device answers probes: only that it makes no progress tells
}


class EW:
    """An expert worker whose experts return their rows. Forked before there are threads."""

    def __init__(self, name, kind, directory):
        self.name = name
        ours, theirs = os.pipe()
        go, self._go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.read(go, 1)
                self._serve(kind, directory, theirs)
            finally:
                os._exit(1)
        os.close(theirs)
        self._address = os.fdopen(ours)

    def _serve(self, kind, directory, out):
        bell = ProcessDoorbell()
        who = (self.name, 1, SECRET, bell)
        if kind == "rdma":
            listener = RdmaListener(HOST, port_of(SERVERS), RDMA, *who)
        else:
            listener = ShmListener(directory, *who)
        bank, spec = EchoBank(EXPERTS, HIDDEN * 2), echo_spec(EXPERTS, TOP_K, HIDDEN)
        server = ExpertServer(bank, listener, bell, spec, 1, BatchingConfig(max_window_us=0))
        os.write(out, json.dumps(listener.address()).encode() + b"\n")
        server.serve()

    def start(self):
        os.write(self._go, b"\n")
        return Peer(self.name, 1, json.loads(self._address.readline()))

    def end(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Either:
    """A connector for both kinds of address."""

    def __init__(self, *who):
        self._ways = {
            "rdma": RdmaConnector(port_of(CLIENTS), RDMA, *who),
            "shm": ShmConnector(*who),
        }

    def connect(self, peer, peer_incarnation, address, geometry):
        return self._ways[address["kind"]].connect(peer, peer_incarnation, address, geometry)


class Batch:
    """Rows whose weighted sums are themselves, since all experts return their rows."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.hidden = rng.integers(0x3F00, 0x4000, (ROWS, HIDDEN), dtype=np.uint16)
        self.ids = np.array([[n % EXPERTS, (n + 1) % EXPERTS] for n in range(ROWS)], np.int32)
        self.weights = np.full((ROWS, TOP_K), 0.5, np.float32)
        self.out = np.zeros_like(self.hidden)

    def dispatch(self, refe):
        self.out[:] = 0
        return refe.dispatch(0, ROWS, self.hidden.ctypes.data, self.ids.ctypes.data)

    def combine(self, refe, ticket):
        refe.combine(ticket, self.weights.ctypes.data, self.out.ctypes.data)
        return self.out.tobytes() == self.hidden.tobytes()


def when_lost(channel):
    """A list that gets the time at which the channel is lost."""
    times, lose = [], channel.lose

    def noting(reason):
        times.append(time.monotonic())
        lose(reason)

    channel.lose = noting
    return times


def late_s():
    """By how much this machine, as busy as it is, oversleeps at worst."""
    worst, end = 0.0, time.monotonic() + 0.3
    while (begin := time.monotonic()) < end:
        time.sleep(0.002)
        worst = max(worst, time.monotonic() - begin - 0.002)
    return worst


def wire(what):
    subprocess.run(["sh", str(WIRE), what], check=True)


def run_case(case, victim, other):
    """What came of it, as a dict; `problems` lists what is not as it should be."""
    reports = []
    bell = ProcessDoorbell()
    refe = Refe(
        worker="aw0", incarnation=1, connector=Either("aw0", 1, SECRET, bell), bell=bell,
        experts=EXPERTS, top_k=TOP_K, hidden=HIDDEN, dtype="bfloat16", report=reports.append,
    )  # fmt: skip
    candidates = [["ew0", "ew1"], ["ew1", "ew0"]] * (EXPERTS // 2)
    down = refe.apply_table(ERT.of(1, candidates), {ew.name: ew.start() for ew in (victim, other)})
    batch = Batch()
    right, usual_s = [], 0.0  # the longest of a number of undisturbed exchanges
    for _ in range(20):
        begin = time.monotonic()
        right.append(batch.combine(refe, batch.dispatch(refe)))
        usual_s = max(usual_s, time.monotonic() - begin)
    channel = refe.links.channels["ew0"]
    times = when_lost(channel)

    allowed_s = UNREACHABLE_S + SLACK_S + late_s()
    os.kill(victim.pid, signal.SIGSTOP)
    ticket = batch.dispatch(refe)
    if case == "kill":
        os.kill(victim.pid, signal.SIGKILL)
    elif case != "stop":
        wire(case)
    begin = time.monotonic()
    right.append(batch.combine(refe, ticket))
    answered_s = time.monotonic() - begin
    _, reasons = CASES[case]
    while channel.lost is None and time.monotonic() < begin + UNREACHABLE_S + 1:
        bell.wait(bell.value(), 0.001)
    lost, lost_s = channel.lost, times[0] - begin if times else None
    begin = time.monotonic()
    right += [batch.combine(refe, batch.dispatch(refe)) for _ in range(5)]
    after_s = (time.monotonic() - begin) / 5
    hows = [r.how for r in reports if isinstance(r, Failover) and r.peer == "ew0"]

    problems = [
        text
        for text, wrong in (
            (f"not connected: {down}", bool(down)),
            ("wrong sums", not all(right)),
            (f"answered after {answered_s:.3f} s", reasons and answered_s > allowed_s + usual_s),
            (f"lost: {lost}; expected: {reasons}", lost not in (reasons or (None,))),
            (f"lost after {lost_s} s", reasons and (lost_s or 0) > allowed_s),
            ("no failover was told", not hows),
        )
        if wrong
    ]
    if case in ("cut", "silence"):
        wire("mend")
    if case == "stop":
        os.kill(victim.pid, signal.SIGCONT)
    refe.close()
    return {
        "case": case, "lost": lost, "lost_s": lost_s, "answered_s": answered_s,
        "after_s": after_s, "how": hows, "unreachable_s": UNREACHABLE_S,
        "allowed_s": allowed_s, "usual_s": usual_s, "problems": problems,
    }  # fmt: skip


def main(cases):
    failed = False
    with tempfile.TemporaryDirectory() as directory:
        pairs = {
            case: (EW("ew0", "rdma", directory), EW("ew1", CASES[case][0], directory))
            for case in cases
        }
        for case, (victim, other) in pairs.items():
            outcome = run_case(case, victim, other)
            print(json.dumps(outcome), flush=True)
            failed |= bool(outcome["problems"])
            for ew in (victim, other):
                ew.end()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(CASES)))
