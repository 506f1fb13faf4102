"""What a store keeps, written to a file for the store of the next job, and read by that one.

The file is what an AW would have sent: a Hello, then Puts with whole rows, their sums, and tokens.
So to read it is to be served it: nothing in it is believed that would not be believed of an AW, and
a file that ends in the middle is as good as far as it goes.

To save a request is to take it over: whoever wrote it until now writes no more, and cannot have it
forgotten.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from tarragon_hpc.checkpoint.asks import Hello, write_frame
from tarragon_hpc.checkpoint.row_layout import RowLayout
from tarragon_hpc.checkpoint.server import OURSELVES
from tarragon_hpc.checkpoint.sizes import fetched_bytes, rows_per_reply
from tarragon_hpc.errors import FrameError
from tarragon_hpc.wire import kv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Set

# No frame that was saved is larger, unless one token's rows are: then a file is not to be trusted.
_MAX_BODY = 1 << 28


class Store(Protocol):
    """See `PlainStore`."""

    def handle(self, client: int, frame: memoryview, reply: memoryview, now: float) -> int: ...
    def prefixes(self) -> dict[int, int]: ...
    def row_bytes(self) -> tuple[int, ...]: ...


class Copied(NamedTuple):
    """requests: how many there are something of. tokens: positions. problem: why there is not more,
    or nothing.
    """

    requests: int
    tokens: int
    problem: str = ""


def save(
    store: Store,
    file: BinaryIO,
    keys: Set[int],
    attempt: int,
    clock: Callable[[], float],
    deadline: float,
    frame_bytes: int = 1 << 20,
) -> Copied:
    """Write what a store has of these requests, the longest first, until `deadline` by `clock`.

    attempt: higher than that of any AW so far, lower than that of the next one. frame_bytes: of one
    frame, unless one token's rows are longer. The store may serve AWs meanwhile, in another thread.
    Raises OSError.
    """
    row_bytes = store.row_bytes()
    if not row_bytes:
        return Copied(0, 0)
    source = _Source(store, RowLayout(row_bytes), attempt, clock, frame_bytes)
    file.write(source.hello())
    held = {key: committed for key, committed in store.prefixes().items() if key in keys}
    requests = tokens = 0
    for key in sorted(held, key=lambda key: -held[key]):
        begun = False
        for frame, rows in source.frames(key, held[key]):
            if clock() >= deadline:
                return Copied(requests, tokens, f"out of time after {requests} of {len(held)}")
            file.write(frame)
            requests, tokens = requests + (not begun), tokens + rows
            begun = True
    return Copied(requests, tokens)


def load(store: Store, file: BinaryIO, clock: Callable[[], float]) -> Copied:
    """Have a store take what was saved. Raises OSError.

    Whatever is wrong with the file ends it there. A store that has taken no request is not to be
    used: the file may have told it of rows that no AW has. `StoreServer` says how long they stay.
    """
    reply = memoryview(bytearray(1 << 12))
    keys: set[int] = set()
    tokens = 0
    while head := file.read(kv.HEADER_BYTES):
        try:
            size = kv.read_header(head).body
            if size > _MAX_BODY:
                raise FrameError(f"a frame of {size} bytes")
            frame = memoryview(head + file.read(size))
            header = kv.unpack_header(frame)
        except FrameError as error:
            return Copied(len(keys), tokens, f"it is torn: {error}")
        answer = kv.unpack_header(reply[: store.handle(OURSELVES, frame, reply, clock())])
        if answer.status != kv.STATUS_OK:
            return Copied(len(keys), tokens, "a frame was refused")
        if header.kind == kv.PUT and not answer.runs:
            keys.update(run.key for run in kv.unpack_runs(frame, header))
            tokens += header.rows
    return Copied(len(keys), tokens)


class _Source:
    """A store as one reads it, with the attempt that takes its requests over."""

    def __init__(
        self,
        store: Store,
        layout: RowLayout,
        attempt: int,
        clock: Callable[[], float],
        frame_bytes: int,
    ) -> None:
        self._store = store
        self._layout = layout
        self._attempt = attempt
        self._clock = clock
        self._sequence = 0  # of the next question
        self._written = 0  # of the last frame in the file
        self._question = memoryview(bytearray(kv.HEADER_BYTES + kv.RUN_BYTES))
        self._reply = memoryview(bytearray(max(frame_bytes, fetched_bytes(layout, 1))))
        # A store answers only those that have introduced themselves.
        self._ask(self.hello())

    def hello(self) -> memoryview:
        """The first frame."""
        hello = Hello(self._layout, lambda _: None)
        slot = memoryview(bytearray(kv.HEADER_BYTES + 4 * self._layout.layers))
        return slot[: hello.write(slot, 0)]

    def frames(self, key: int, committed: int) -> Iterator[tuple[bytes, int]]:
        """Puts of the first `committed` positions of a request, and how many rows each has."""
        step = rows_per_reply(self._layout, len(self._reply))
        if not (tokens := self._tokens(key, committed)):
            return
        for start in range(0, len(tokens) // 4, step):
            rows = min(step, len(tokens) // 4 - start)
            run = kv.Run(key, self._attempt, 0, start, rows)
            header, answer = self._ask_for(kv.FETCH, run)
            if header.status != kv.STATUS_OK or header.rows != rows:
                return  # it had to make room meanwhile
            yield self._put(run, tokens[4 * start : 4 * (start + rows)], answer), rows

    def _tokens(self, key: int, committed: int) -> bytes:
        """The token ids of a request, which is taken over by that."""
        room = kv.HEADER_BYTES + 4 * committed
        if room > len(self._reply):
            self._reply = memoryview(bytearray(room))
        header, answer = self._ask_for(kv.LOOK, kv.Run(key, self._attempt, 0, 0, 0))
        if header.status != kv.STATUS_OK:
            return b""
        return bytes(answer[kv.HEADER_BYTES : kv.HEADER_BYTES + 4 * min(committed, header.rows)])

    def _put(self, run: kv.Run, tokens: bytes, answer: memoryview) -> bytes:
        """The Put of rows that were fetched, token by token: in a Put they are layer by layer."""
        layout, rows = self._layout, run.length
        begin = kv.fetch_payload(rows, layout.layers)
        end = fetched_bytes(layout, rows)
        sums = answer[kv.HEADER_BYTES : kv.HEADER_BYTES + 4 * rows * layout.layers].cast("I")
        every = b"".join(bytes(sums[layer :: layout.layers]) for layer in range(layout.layers))
        payload = kv.put_payload(1, rows, layout.layers, commit=True)
        tables = kv.pack_run(run) + tokens + every
        body: list[bytes | memoryview] = [tables.ljust(payload - kv.HEADER_BYTES, b"\0")]
        for low, high in pairwise(layout.before):
            size = high - low
            body += [answer[at : at + size] for at in range(begin + low, end, layout.token_bytes)]
        nbytes = sum(map(len, body))
        self._written += 1
        flags, layers = kv.FLAG_COMMIT, layout.layers
        header = kv.Header(kv.PUT, flags, 0, self._written, 1, rows, 0, layers, nbytes)
        return b"".join((kv.pack_header(header), *body))

    def _ask_for(self, kind: int, run: kv.Run) -> tuple[kv.Header, memoryview]:
        nbytes = write_frame(self._question, kind, self._sequence, runs=[run])
        return self._ask(self._question[:nbytes])

    def _ask(self, frame: memoryview) -> tuple[kv.Header, memoryview]:
        self._sequence += 1
        nbytes = self._store.handle(OURSELVES, frame, self._reply, self._clock())
        return kv.unpack_header(self._reply[:nbytes]), self._reply[:nbytes]
