"""The few verbs that are used here, over pyverbs 44 (Debian 12) to 59, which nothing else imports.

Importing it raises ImportError where there is no pyverbs. What pyverbs raises becomes ConnectFailed
while a connection is made, and a failed completion afterwards.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
from typing import TYPE_CHECKING, Any

from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsError
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, SendWR

from tarragon_hpc.errors import ConfigError, ConnectFailed
from tarragon_hpc.transport.completions import Completion, completion
from tarragon_hpc.transport.rdma_offer import MTUS
from tarragon_hpc.wire.parse import address_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tarragon_hpc.config.schema import RdmaConfig
    from tarragon_hpc.transport.rdma_ports import Port

try:
    import pyverbs.enums as enums
except ImportError:  # its name in later versions
    import pyverbs.libibverbs_enums as enums

_POLLED_AT_ONCE = 64


@contextlib.contextmanager
def _making(what: str) -> Iterator[None]:
    try:
        yield
    except PyverbsError as error:
        raise ConnectFailed(f"{what}: {error}") from None


class Device:
    """A port of an RDMA device, opened.

    mtu: bytes of one packet
    max_message: largest write, in bytes; max_requests: largest send queue
    """

    def __init__(self, port: Port) -> None:
        """Raises ConfigError."""
        self.port = port
        try:
            self._context = Context(name=port.device)
            self._domain = PD(self._context)
            there = self._context.query_port(port.port)
            self.mtu = min(128 << there.active_mtu, port.mtu or MTUS[-1])  # enum ibv_mtu: 256 is 1
            self.max_message: int = there.max_msg_sz
            self.max_requests: int = self._context.query_device().max_qp_wr
        except PyverbsError as error:
            raise ConfigError("transport.rdma.device", f"{port.device}: {error}") from None

    def __repr__(self) -> str:
        return f"Device({self.port.device} port {self.port.port})"

    def register(self, memory: memoryview, *, remote: bool) -> Memory:
        """Let the device read memory, and the peer write it if `remote`. The caller keeps it mapped
        until it is closed. Raises ConnectFailed.
        """
        flags = enums.IBV_ACCESS_LOCAL_WRITE | enums.IBV_ACCESS_REMOTE_WRITE if remote else 0
        with _making(f"registering {memory.nbytes} bytes of memory (`ulimit -l` limits it)"):
            address = address_of(memory, writable=True)
            return Memory(address, MR(self._domain, memory.nbytes, flags, address=address))

    def completion_queue(self, depth: int) -> CompletionQueue:
        """For `depth` completions. Raises ConnectFailed."""
        with _making(f"a completion queue of {depth}"):
            return CompletionQueue(CQ(self._context, depth))

    def queue_pair(self, completions: CompletionQueue, depth: int) -> QueuePair:
        """For up to `depth` writes under way. Raises ConnectFailed."""
        attributes = QPAttr(port_num=self.port.port)
        # QP() moves on to INIT with these at once: later would be too late for the access flags.
        attributes.qp_access_flags = enums.IBV_ACCESS_REMOTE_WRITE

        def make(inline: int) -> Any:
            cap = QPCap(depth, 1, 1, 1, max_inline_data=inline)
            queue = completions.queue
            init = QPInitAttr(qp_type=enums.IBV_QPT_RC, scq=queue, rcq=queue, cap=cap, sq_sig_all=0)
            return QP(self._domain, init, attributes)

        with _making(f"a queue pair of {depth} writes"):
            try:
                return QueuePair(self.port, make(inline=8), inline=True)
            except PyverbsError:
                return QueuePair(self.port, make(inline=0), inline=False)


class Memory:
    """Registered memory: its address, and the keys to it for this end and for the peer."""

    def __init__(self, address: int, region: Any) -> None:
        self.address = address
        self.lkey: int = region.lkey
        self.rkey: int = region.rkey
        self._region = region

    def close(self) -> None:
        """Nobody can reach it by the device any more."""
        self._region.close()


class CompletionQueue:
    """What has become of signalled writes; of all writes once one has failed."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def poll(self) -> list[Completion]:
        """What is new."""
        try:
            _, found = self.queue.poll(_POLLED_AT_ONCE)
        except PyverbsError as error:
            return [Completion(0, 0, "broken", f"the completion queue failed ({error})")]
        return [completion(c.qp_num, c.wr_id, c.status, c.vendor_err) for c in found]

    def close(self) -> None:
        """After its queue pairs."""
        self.queue.close()


class Write:
    """A one-sided write that is posted again and again, with the one chained to it, if any.

    source, target: (address, key) here and at the peer
    """

    def __init__(
        self,
        wr_id: int,
        source: tuple[int, int],
        target: tuple[int, int],
        nbytes: int,
        *,
        signalled: bool,
        inline: bool,
        then: Write | None,
    ) -> None:
        flags = enums.IBV_SEND_SIGNALED if signalled else 0
        flags |= enums.IBV_SEND_INLINE if inline else 0
        address, lkey = source
        self._piece = SGE(address, nbytes, lkey)
        self._then = then
        self.request: Any = SendWR(
            wr_id,
            enums.IBV_WR_RDMA_WRITE,
            1,
            sg=[self._piece],
            send_flags=flags,
            next_wr=None if then is None else then.request,
        )
        address, rkey = target
        self.request.set_wr_rdma(rkey, address)
        # Its own copy of the piece goes: pyverbs frees that in close() only. What is posted from
        # now on is `_piece` itself, whose length can be set.
        self.request.close()
        self.request.sg_list = self._piece
        if nbytes == 0:
            self.request.num_sge = 0  # the constructor refuses it

    def set_nbytes(self, nbytes: int) -> None:
        """How many bytes go the next time it is posted."""
        self._piece.length = nbytes

    def close(self) -> None:
        """Once the queue pair that it was posted to is closed."""
        self._piece.close()


class QueuePair:
    """A reliable connection's end, of that number; its packets count from `first_packet`."""

    def __init__(self, port: Port, pair: Any, *, inline: bool) -> None:
        self.number: int = pair.qp_num
        self.first_packet = secrets.randbits(24)
        self._inline = inline  # eight bytes may travel in the request itself
        self._port = port
        self._pair = pair

    def connect(
        self, number: int, first_packet: int, gid: str, lid: int, mtu: int, settings: RdmaConfig
    ) -> None:
        """To the peer's queue pair, on its port, with packets of `mtu` bytes. Raises
        ConnectFailed.
        """
        a = QPAttr(port_num=self._port.port)
        a.qp_access_flags = enums.IBV_ACCESS_REMOTE_WRITE
        a.path_mtu = mtu.bit_length() - 8
        a.max_rd_atomic = a.max_dest_rd_atomic = 1
        a.min_rnr_timer = 12  # never comes into play: nothing here needs a receive request
        a.rnr_retry = 1
        a.timeout, a.retry_cnt = settings.timeout, settings.retries
        a.dest_qp_num, a.rq_psn, a.sq_psn = number, first_packet, self.first_packet
        if self._port.fabric.startswith("ib:"):
            a.ah_attr = AHAttr(dlid=lid, port_num=self._port.port)
        else:
            words = ipaddress.IPv6Address(gid).packed.hex(":", 2)
            route = GlobalRoute(dgid=GID(words), sgid_index=self._port.gid_index, hop_limit=64)
            a.ah_attr = AHAttr(is_global=1, port_num=self._port.port, gr=route)
        with _making("connecting a queue pair"):
            self._pair.to_rts(a)

    def write(
        self,
        wr_id: int,
        source: tuple[int, int],
        target: tuple[int, int],
        nbytes: int,
        *,
        signalled: bool = True,
        inline: bool = False,
        then: Write | None = None,
    ) -> Write:
        """To be posted here; see `Write`. `inline`: if possible."""
        inline = inline and self._inline
        return Write(wr_id, source, target, nbytes, signalled=signalled, inline=inline, then=then)

    def post(self, write: Write) -> str | None:
        """Start a write and those chained to it; returns why that could not be done."""
        try:
            self._pair.post_send(write.request)
        except PyverbsError as error:
            return f"the queue pair takes no writes ({error})"
        return None

    def close(self) -> None:
        """Nothing is written, here or there, any more."""
        self._pair.close()
