"""Types of the compiled module; one section per source file of kernels/."""

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray
from typing_extensions import Buffer

from tarragon_hpc.ops.base import Segment

# datapath_slots.cpp: shared memory, slots, doorbells (the contract is in transport/base.py)

BELL_BYTES: int
LIFE_WORDS: int

def map_shared(fd: int, nbytes: int) -> memoryview:
    """Map a memory file read-write; unmapped when the last view of it is gone. Raises OSError."""

def ring_bytes(slots: int, nbytes: int) -> int:
    """Bytes of a ring of `slots` buffers of `nbytes` each, control lines included."""

def slot_offset(slot: int, nbytes: int) -> int:
    """Where the buffer of a slot starts in its ring."""

class LifeSign:
    """Gives the signs of life in a doorbell's memory, LIFE_WORDS of them, while it exists.

    Destruction gives no sign; the death of the process does, before its memory is unmapped.
    """

    def __init__(self, bell_memory: Buffer) -> None: ...

class LifeWatch:
    """Marks `slots` lost and rings `bell`, from a thread of its own, when the owner of the sign of
    life `word` in a peer's doorbell memory has died."""

    def __init__(
        self, peer_bell_memory: Buffer, word: int, slots: Slots, bell: Doorbell
    ) -> None: ...
    def stop(self) -> None:
        """End the watch. Safe to call twice."""

class Notifier:
    """What happens once a slot has been filled and published in its writer's ring."""

class CallNotifier(Notifier):
    """Calls `posted(slot, sequence, nbytes)` in the writer's thread; it must not raise or block."""

    def __init__(self, posted: Callable[[int, int, int], None]) -> None: ...

class Doorbell(Notifier):
    """Counter and sleepers in `BELL_BYTES` of shared memory; see `base.Doorbell`.

    As a peer's notifier: it is rung.
    """

    def __init__(self, memory: Buffer, spin_us: int) -> None: ...
    def value(self) -> int: ...
    def ring(self) -> None: ...
    def wait(self, seen: int, timeout_s: float) -> int: ...
    def watch(self, ring: Buffer, slots: int, nbytes: int) -> int:
        """From now on `wait` looks at the sequences of a ring too, which a peer writes without
        ringing; an arrival rings. Returns a number for `unwatch`. From any thread."""
    def unwatch(self, number: int) -> None:
        """Let go of a ring; unknown numbers are ignored. From any thread."""

class Slots:
    """An end of a channel; once lost it acquires and polls nothing any more."""

    def set_lost(self) -> None:
        """From any thread."""
    @property
    def lost(self) -> bool: ...

class ClientSlots(Slots):
    """The asking end of two rings. Over shared memory `request` is the peer's; over a network both
    are ours, and `peer` sees to it that what is posted appears in the peer's."""

    def __init__(
        self,
        request: Buffer,
        reply: Buffer,
        slots: int,
        request_bytes: int,
        reply_bytes: int,
        peer: Notifier,
    ) -> None: ...
    def acquire(self) -> int | None: ...
    def post(self, slot: int, nbytes: int) -> None: ...
    def reply(self, slot: int) -> int | None:
        """Bytes of the reply as the peer states them (to be checked), once it is there."""
    def release(self, slot: int) -> None: ...
    def owed(self) -> int: ...
    def abandon(self, slot: int) -> None: ...

class ServerSlots(Slots):
    """The answering end; see `ClientSlots`."""

    def __init__(
        self,
        request: Buffer,
        reply: Buffer,
        slots: int,
        request_bytes: int,
        reply_bytes: int,
        peer: Notifier,
    ) -> None: ...
    def poll(self) -> tuple[int, int] | None:
        """Slot of the next request and its bytes as the peer states them (to be checked)."""
    def send(self, slot: int, nbytes: int) -> None: ...

# datapath_rows.cpp: the twins are datapath/assign.py, combine.py and rows.py

class Assignment:
    """See `datapath.rows.Assignment`."""

    @property
    def parts(self) -> tuple[tuple[int, int, int], ...]: ...
    @property
    def missing(self) -> tuple[int, ...]: ...
    def tables(self, part: int) -> tuple[list[tuple[int, int]], list[int], list[int]]:
        """Groups (expert, count), pair rows, and tokens of the rows of a part."""
    def pack(
        self, part: int, slot: Buffer, hidden: int, sequence: int, layer: int, flags: int
    ) -> int: ...
    def combine(self, replies: Sequence[Buffer], weights: int, out: int) -> None: ...

class Router:
    """See `datapath.rows.Router`."""

    def __init__(
        self,
        owners: Buffer,
        workers: int,
        top_k: int,
        hidden: int,
        dtype: int,
        incarnation: int,
        epoch: int,
    ) -> None: ...
    def assign(self, topk_ids: int, rows: int) -> Assignment: ...

# datapath_parse.cpp: the twin is wire/parse.py

def parse_dispatch(
    slot: Buffer, reply_capacity: int
) -> tuple[tuple[int, ...], list[tuple[int, int, int]], int, bytes, int, int, int]:
    """The fields of `wire.parse.ParsedDispatch`. Raises ValueError if a number is out of range."""

def gather_rows(x: int, index: int, count: int, y: int, row_bytes: int) -> None:
    """y[i] = x[index[i]] for i < count; x, index (u32) and y are addresses."""

def address_of(buffer: Buffer, writable: bool = False) -> int:
    """The address of a C-contiguous buffer's first byte. Raises ValueError or BufferError."""

def dispatch_layout() -> dict[str, tuple[int, ...]]:
    """Size and field offsets of the headers, to compare with wire/dispatch.py."""

# datapath_lane.cpp: the specification is datapath/exchange.py

DONE: int
TIMED_OUT: int
LOOK: int

class Call:
    """A dispatch that a lane has sent; message i of its parts has sequence first_sequence + i.

    sent_s: time.monotonic() at the send; waited_s: seconds slept or spun for replies;
    answers: (worker index, bytes of the reply, seconds from the send to its sight) by part
    """

    @property
    def assignment(self) -> Assignment: ...
    @property
    def slots(self) -> list[int]: ...
    @property
    def first_sequence(self) -> int: ...
    @property
    def request_bytes(self) -> int: ...
    @property
    def sent_s(self) -> float: ...
    @property
    def waited_s(self) -> float: ...
    @property
    def answers(self) -> list[tuple[int, int, float]]: ...

class Lane:
    """See `datapath.lane.FastLane`. workers: (slots, incarnation) or None by index."""

    def __init__(
        self, router: Router, workers: list[tuple[ClientSlots, int] | None], bell: Doorbell
    ) -> None: ...
    def send(
        self, topk_ids: int, rows: int, hidden: int, first_sequence: int, layer: int
    ) -> Call | None: ...
    def finish(self, call: Call, weights: int, out: int, timeout_s: float) -> int: ...

# kv_rows.cpp: the twin is attention/kv_device.py

Array = Buffer | NDArray[Any]

class KvSlots:
    """Checked slots of some tokens, for all layers."""

    @property
    def rows(self) -> int: ...

class KvLayers:
    """See `attention.kv_rows.NativeRows`.

    layers: (address, keys_across, group, blocks, block_tokens, block_stride, heads, head_stride,
    token_stride, piece_bytes, itemsize) as in `attention.kv_layout.KvLayer`; groups:
    (block_tokens, evicts). The memory must outlive this.
    """

    def __init__(
        self,
        layers: Sequence[tuple[int, bool, int, int, int, int, int, int, int, int, int]],
        groups: Sequence[tuple[int, bool]],
    ) -> None: ...
    def locate(self, slots: Sequence[Array]) -> KvSlots:
        """int64 slots by group."""
    def gather(
        self, slots: KvSlots, first_layer: int, layers: int, out: Array, absent: Array
    ) -> None: ...
    def scatter(self, slots: KvSlots, rows: Array, sums: Array, bad: Array) -> int:
        """Write all rows but those that are `bad`, missing or unwanted, which `bad` (uint8
        [rows, layers]) tells afterwards; returns how many of the wanted ones were not written."""

# kv_seal.cpp: the twin is wire/kv_sums.py

def kv_seal(
    payload: Array,
    layers: int,
    rows: int,
    first_layer: int,
    row_bytes: Sequence[int],
    keys: Array,
    positions: Array,
    absent: Array | None,
    sums: Array,
    check: bool,
) -> None:
    """See `wire.kv_sums.seal`. Raises ValueError if a length does not fit."""

def kv_check(
    payload: Array,
    row_bytes: Sequence[int],
    keys: Array,
    positions: Array,
    sums: Array,
    bad: Array,
    check: bool,
) -> int:
    """See `wire.kv_sums.bad_rows`; `bad` is written, its sum returned."""

# pingpong.cpp: the floor under the datapath, for bench/datapath.py; no twin

def pingpong_bytes(request_bytes: int, reply_bytes: int) -> int:
    """Bytes of shared memory for messages of these sizes."""

def pingpong_serve(memory: Buffer, spin_us: int) -> None:
    """Answer round trips until `pingpong_stop`; the GIL is released."""

def pingpong_ask(
    memory: Buffer, request_bytes: int, reply_bytes: int, count: int, spin_us: int
) -> list[int]:
    """Nanoseconds of each of `count` round trips with these sizes."""

def pingpong_stop(memory: Buffer) -> None:
    """End `pingpong_serve`."""

# tcp_*.hpp, tcp_link.cpp, tcp_receive.cpp, tcp_pump.cpp: the TCP transport; no twin

class TcpLink(Notifier):
    """One end of a channel over two TCP connections; also its `slot_channel.Tie`.

    outgoing, incoming: rings in memory of this process: what is posted in one is sent, what the
    peer posts appears in the other. serves: requests come in, replies go out; or the reverse.
    silent_loss_s: a peer that says nothing for so long, although asked, is lost.
    One thread per process moves the bytes of all links; it never takes the GIL.
    """

    def __init__(
        self,
        outgoing: Buffer,
        incoming: Buffer,
        slots: int,
        outgoing_bytes: int,
        incoming_bytes: int,
        serves: bool,
        silent_loss_s: float,
    ) -> None: ...
    def start(self, data: int, control: int, slots: Slots, bell: Doorbell) -> None:
        """Own these connected sockets from now on. Arrivals ring `bell`; a loss marks `slots` lost
        and rings, once. Call it once. Raises OSError; the sockets are closed with the link then."""
    def stop(self) -> None:
        """Say farewell and close; nothing rings or is written any more. Safe to call twice."""
    def probe(self) -> None: ...
    @property
    def answered(self) -> int: ...
    def reason(self) -> str:
        """Why the peer was lost, once the slots are."""

# tcp_pingpong.cpp: the floor under the datapath over TCP, for bench/datapath.py; no twin

def tcp_pingpong_serve(fd: int) -> None:
    """Answer the round trips of `tcp_pingpong_ask` on a connected socket until the peer closes it;
    blocks with the GIL released. The caller closes the socket. Raises OSError."""

def tcp_pingpong_ask(fd: int, request_bytes: int, reply_bytes: int, count: int) -> list[int]:
    """Nanoseconds of each of `count` round trips with these sizes, by blocking calls on a connected
    socket (TCP_NODELAY is set). Raises OSError; ValueError above 4 GiB."""

# ffn.cpp: the twin is ops/torch_bank.py

class FfnBank:
    """Experts by (layer, expert) and their FFN on the CPU; see `ops.native_bank`.

    Raises ValueError for an unknown activation, dtype or `isa`.
    """

    def __init__(
        self,
        *,
        hidden: int,
        ffn: int,
        activation: str,
        alpha: float,
        limit: float,
        dtype: str,
        threads: int,
        isa: str = "auto",
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    def add(
        self,
        layer: int,
        expert: int,
        gate: int,
        up: int,
        down: int,
        gate_bias: int,
        up_bias: int,
        down_bias: int,
    ) -> None:
        """Addresses of the tensors, which stay where they are; biases (0: none) are copied."""
    def run(self, layer: int, segments: Sequence[Segment]) -> None:
        """Run a batch with the GIL released. Raises KeyError for an expert that was not added."""

def ffn_instruction_sets() -> list[str]:
    """What this machine can run: "avx512", "avx2", "scalar"; the best first."""

# kv_store_bind.cpp: the twin is checkpoint/plain_store.py

class KvStore:
    """See `checkpoint.plain_store.PlainStore`; any thread, the GIL is released.

    `memory` is set aside at once: MemoryError if there is not so much.
    """

    def __init__(
        self, memory: int, page_tokens: int = 16, check: bool = True, orphan_s: float = 60.0
    ) -> None: ...
    def handle(self, client: int, frame: Buffer, reply: Buffer, now: float) -> int: ...
    def client_lost(self, client: int, now: float) -> None: ...
    def expire(self, now: float) -> None: ...
    def stats(self) -> dict[str, float]: ...
    def prefixes(self) -> dict[int, int]: ...
    def row_bytes(self) -> tuple[int, ...]: ...
