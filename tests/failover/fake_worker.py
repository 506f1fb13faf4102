"""A worker without engine or experts, started through the real entry.

The first argument may say what goes wrong: `crash=ew1` (exit status 9 before it registers),
`crash-again=ew1` (the same, from the second incarnation on), `crash-loading=ew1` (an exception
after its Welcome), `deaf=aw0` (ignores Shutdown and SIGTERM), `sleepless=aw0` (never sends a
heartbeat after Ready), `unable=ew0` (cannot load anything more), `absent` (the EWs never come: ew0
sees no run directory, ew1 hangs in an import, ew2 cannot reach the head). On SIGUSR1 a worker says
that it was given notice, as under Slurm on SIGTERM. AWs make one token every 5 ms (that which
follows from the seed, or 5), and say that all they run is protected while they know a store. They
claim to be linked to the EWs by shm and to the CSs by tcp, for a reason.
"""

from __future__ import annotations

import functools
import os
import queue
import signal
import sys
import threading
import time
import zlib

from tarragon_hpc.cluster import entry
from tarragon_hpc.ids import Role, parse_worker_id
from tarragon_hpc.wire.common import Peer, Resumption, TokenDelta, TokenLogprobs
from tarragon_hpc.wire.link import WorkerContext, WorkerLink
from tarragon_hpc.wire.notice import Terminator
from tarragon_hpc.wire.to_head import (
    Failed,
    Holding,
    Linked,
    Notice,
    Ready,
    Refused,
    Resumed,
    Saved,
    Stopping,
    TableApplied,
    Tokens,
)
from tarragon_hpc.wire.to_worker import (
    Abort,
    Drain,
    Load,
    Save,
    Shutdown,
    Stores,
    Submit,
    Table,
    Unload,
    Welcome,
)

TOKEN_S = 0.005
fault, _, victim = sys.argv.pop(1).partition("=")


def main(context: WorkerContext) -> int:
    me = (context.worker, context.incarnation)
    mine = fault if victim == context.worker else ""
    if fault == "absent" and context.worker in ("ew1", "ew2"):
        if context.worker == "ew2":
            context.publish({})
        time.sleep(60)
    if mine == "crash" or (mine == "crash-again" and context.incarnation > 1):
        print("this worker has a bad day", flush=True)
        sys.exit(9)
    if mine == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    inbox: queue.Queue[object] = queue.Queue()
    running: dict[str, tuple[Submit, int]] = {}
    stores: list[Peer] = []

    def stats() -> dict[str, float]:
        if context.worker.startswith("cs"):
            return {"beat": 1, "kv_used_bytes": 1 << 20, "kv_capacity_bytes": 1 << 30}
        kept = {"kv_requests": len(running), "kv_protected": len(running) if stores else 0}
        return {"beat": 1, "stores": len(stores), **kept}

    link = WorkerLink(context, {"where": str(context.runtime_dir)}, inbox.put, stats)
    link.start()
    signal.signal(signal.SIGUSR1, lambda *_: link.send(Notice(*me, "SIGUSR1")))
    holds: set[int] = set()
    draining: Drain | None = None
    if context.config.cluster.backend == "slurm" and mine != "deaf":
        leave = functools.partial(inbox.put, Drain("SIGTERM"))
        Terminator(context, link.send, leave, lambda: draining is not None).install()
    while True:
        if draining is not None and not running:
            link.send(Stopping(*me, draining.reason))
            link.close()
            return 0
        try:
            message = inbox.get(timeout=TOKEN_S if running else None)
        except queue.Empty:
            message = None
        match message:
            case Welcome() if mine == "crash-loading":
                raise RuntimeError("no room for the experts")
            case Welcome():
                is_ew = parse_worker_id(context.worker)[0] is Role.EW
                assert (message.experts is not None) == is_ew
                experts, shadows = message.experts or [], message.shadows or []
                holds |= {*experts, *shadows}
                link.send(Ready(*me, {"experts": experts, "shadows": shadows}))
                if mine == "sleepless":
                    os.kill(os.getpid(), signal.SIGSTOP)
            case Load() if mine == "unable":
                link.send(Holding(*me, sorted(holds), "no such file"))
            case Load():
                holds |= set(message.experts)
                link.send(Holding(*me, sorted(holds)))
            case Unload():
                assert holds >= set(message.experts)
                holds -= set(message.experts)
                link.send(Holding(*me, sorted(holds)))
            case Save():
                link.send(Saved(*me, len(message.requests), message.attempt, 64, "as it was told"))
            case Drain():
                draining = message
            case Stores():
                assert all(peer.address["where"] for peer in message.peers)
                stores[:] = message.peers
                for peer in message.peers:
                    link.send(Linked(*me, peer.worker, peer.incarnation, "tcp", "shm: no socket"))
            case Table():
                for peer in message.peers:
                    link.send(Linked(*me, peer.worker, peer.incarnation, "shm"))
                link.send(TableApplied(*me, message.epoch))
            case Submit() if draining is not None:
                link.send(Failed(*me, [message.request], "it takes nothing new"))
            case Submit() if message.prompt == [0]:
                link.send(Refused(*me, message.request, "token 0 is not welcome", "prompt"))
            case Submit():
                running[message.request] = (message, len(message.tokens))
                if message.attempt > 1:
                    link.send(resumed(me, message, bool(stores)))
            case Abort():
                for request in message.requests:
                    running.pop(request, None)
            case Shutdown() if mine != "deaf":
                link.send(Stopping(*me, message.reason))
                link.close()
                return 0
        items = []
        for request, (submit, done) in list(running.items()):
            last = done + 1 == submit.sampling.max_tokens
            finish = "length" if last else None
            items.append(produced(submit, done, finish))
            running[request] = (submit, done + 1)
            if last:
                del running[request]
        if items:
            link.send(Tokens(*me, items))
            time.sleep(0)


def produced(submit: Submit, index: int, finish: str | None) -> TokenDelta:
    """The next token: 5, or what follows from the seed if there is one."""
    sampling = submit.sampling
    base = sum(submit.prompt) + (sampling.seed or 0) % 1009
    token = 5 if sampling.seed is None else 3 + zlib.crc32(b"%d %d" % (base, index)) % 200
    scores = None
    if sampling.logprobs is not None:
        others = [(token + 1 + i) % 200 for i in range(sampling.logprobs)]
        values = [-0.1 - index / 7, *(-0.5 - index / 3 for _ in others)]
        scores = [TokenLogprobs([token, *others], values, 1)]
    return TokenDelta(submit.request, index, [token], scores, finish, None, 0, submit.attempt)


def resumed(me: tuple[str, int], submit: Submit, stored: bool) -> Resumed:
    """As if a store had it all but for the last token, or nothing."""
    tokens = len(submit.prompt) + len(submit.tokens)
    kept = tokens - 1 if stored else 0
    reason = "" if stored else "no store"
    about = (submit.request, submit.attempt)
    item = Resumption(*about, kept, 0, tokens - kept, 64 * kept, TOKEN_S, reason)
    return Resumed(*me, item)


if __name__ == "__main__":
    this = sys.modules["__main__"]
    sys.modules["tarragon_hpc.attention.worker"] = this
    sys.modules["tarragon_hpc.expert.worker"] = this
    sys.modules["tarragon_hpc.checkpoint.worker"] = this
    threading.current_thread().name = "main"
    if fault == "absent" and "ew0" in sys.argv:
        time.sleep(60)
    entry.leave(entry.main())
