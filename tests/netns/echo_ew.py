"""An EW whose experts return their rows, on a host of its own, over TCP.

    python -m tests.netns.echo_ew WORKER INCARNATION HOST

Prints the address it listens at; ends with its standard input.
"""

from __future__ import annotations

import json
import sys
import threading

from tarragon_hpc.bench.echo_peer import EchoBank, echo_spec
from tarragon_hpc.config.schema import BatchingConfig
from tarragon_hpc.expert.server import ExpertServer
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.transport.tcp import TcpListener

EXPERTS, TOP_K, HIDDEN, SECRET = 8, 2, 256, b"n" * 32
SILENT_LOSS_S = 1.0


def main(worker: str, incarnation: str, host: str) -> None:
    bell = ProcessDoorbell()
    number = int(incarnation)
    listener = TcpListener(host, worker, number, SECRET, bell, silent_loss_s=SILENT_LOSS_S)
    spec = echo_spec(EXPERTS, TOP_K, HIDDEN)
    bank = EchoBank(spec.experts, spec.shape.hidden * 2)
    server = ExpertServer(bank, listener, bell, spec, number, BatchingConfig())

    def end_with_the_parent() -> None:
        sys.stdin.read()
        server.stop("the test is over", drain=False)

    threading.Thread(target=end_with_the_parent, daemon=True).start()
    print(json.dumps(listener.address()), flush=True)
    server.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
