"""The courier: a thread of an AW that keeps the checkpoint stores up to date, and asks them.

The engine thread hands it rows and is never kept waiting: what a store does not take stays in
bounded memory, and what finds no room there is not taken at all. Each engine step:

    protection.set_stores(courier.stores)
    for answer in courier.answers(): protection.answered(*answer)
    pieces = protection.plan(step, now, courier.room())
    batch = courier.begin(pieces)                             # None: protection.skipped(pieces)
    … batch.rows(layer)[:] = …, batch.absent(layer)[:] = …   for every layer
    batch.commit(tokens)

The courier wakes once per step, to take the answers to the last rows and to post the next ones:
answers to rows do not wake it. It listens to its doorbell only while somebody waits for an answer
or a slot.
"""

from __future__ import annotations

import queue
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from tarragon_hpc.checkpoint.batch import SLACK, bytes_per_row, make_batch
from tarragon_hpc.checkpoint.delivery import Delivery
from tarragon_hpc.checkpoint.dialing import Dialer
from tarragon_hpc.checkpoint.gate import Gate
from tarragon_hpc.checkpoint.row_layout import RowLayout
from tarragon_hpc.checkpoint.sizes import geometry
from tarragon_hpc.checkpoint.staging import Staging
from tarragon_hpc.checkpoint.traffic import Traffic
from tarragon_hpc.errors import ConfigError
from tarragon_hpc.transport.dial import in_a_thread
from tarragon_hpc.wire.kv import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from tarragon_hpc.checkpoint.batch import Batch
    from tarragon_hpc.checkpoint.fetching import FetchResult, Sink
    from tarragon_hpc.checkpoint.looking import LookResult
    from tarragon_hpc.checkpoint.pieces import Answered, Piece, Store
    from tarragon_hpc.config.schema import CheckpointConfig
    from tarragon_hpc.ids import Incarnation
    from tarragon_hpc.transport.base import ClientChannel, Connector, Doorbell
    from tarragon_hpc.wire.common import Peer

LOOK_S = 0.25


class Courier:
    """See the module's text. `begin`, `room` and `answers` are for the engine thread, which raises
    RuntimeError there if the courier's thread has died of a bug; the rest is for any thread.

    connector, bell: the way to the stores, and the doorbell that they ring, the courier's own
    row_bytes: bytes of a token's row in each layer. Raises ConfigError if the queue is too small.
    allocate: makes the memory of the queue, see `Staging`
    gate: to be closed while a dispatch is in flight
    """

    def __init__(
        self,
        connector: Connector,
        bell: Doorbell,
        row_bytes: Sequence[int],
        config: CheckpointConfig,
        *,
        allocate: Callable[[int], NDArray[np.uint8]] | None = None,
        spawn: Callable[[Callable[[], None]], None] = in_a_thread,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.layout = RowLayout(row_bytes)
        least = config.stores * (bytes_per_row(self.layout) + 2 * SLACK)
        if config.queue < least:
            raise ConfigError(
                "checkpoint.queue", f"{config.queue} bytes; this model needs {least} at least"
            )
        self.staging = Staging(config.queue, allocate)
        self.traffic = Traffic(clock)
        self.gate = Gate(self._wake)
        self._bell = bell
        self._clock = clock
        dialer = Dialer(connector, geometry(self.layout, config), self._dialed, spawn)
        self._delivery = Delivery(
            self.layout, dialer, self.gate, self.traffic, checksums=config.checksums
        )
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._on_bell = False
        self._stopping = False
        self._died: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)

    def __repr__(self) -> str:
        return f"Courier({', '.join(map(str, self.stores))}; {self.staging})"

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop: looks and fetches end, rows that wait are dropped, channels are closed."""
        self._stopping = True
        self._wake()
        if self._thread.is_alive():
            self._thread.join()

    def set_stores(self, peers: Sequence[Peer]) -> None:
        """These stores serve now; whatever was said before is void."""
        self._order(partial(self._delivery.want, tuple(peers)))

    @property
    def stores(self) -> tuple[Store, ...]:
        """The stores that rows can be sent to now."""
        return tuple(self._delivery.lines)

    # For the engine thread.

    def room(self) -> dict[Store, int]:
        """How many rows (of all layers) each store's part of the queue has room for.

        A store that does not listen fills its own part only, and soon nothing.
        """
        self._check()
        lines, now = self._delivery.lines, self._clock()
        part = len(self.staging.memory) // max(1, len(lines)) - SLACK
        cost = bytes_per_row(self.layout)
        return {
            store: 0 if line.deaf(now) else max(0, part - line.queued) // cost
            for store, line in lines.items()
        }

    def begin(self, pieces: Sequence[Piece]) -> Batch | None:
        """A batch to fill, at least one piece long; None: the queue is full, nothing is copied."""
        self._check()
        batch = make_batch(pieces, self.layout, self.staging, self._commit)
        if batch is not None:
            lines = self._delivery.lines
            batch.heeded = {s: lines[s].heeded for s in batch.shares if s in lines}
        return batch

    def be_prompt(self) -> None:
        """Take answers to rows as soon as they are there, not when there is more to do.

        For who waits for them; it costs another wake per step.
        """
        self._delivery.prompt = True

    def answers(self) -> list[Answered]:
        """What stores have answered since the last call."""
        self._check()
        taken = []
        news = self._delivery.news
        for _ in range(len(news)):
            heeded, answer = news.popleft()
            if heeded and (line := self._delivery.lines.get(answer.store)) is not None:
                line.heeded = heeded
            taken.append(answer)
        return taken

    # For any thread.

    def free(self, key: int, attempt: int) -> None:
        """A request has ended: the stores may forget it."""
        self._order(partial(self._delivery.free, key, attempt))

    def look(
        self,
        key: int,
        attempt: int,
        done: Callable[[LookResult], None],
        timeout_s: float = LOOK_S,
    ) -> None:
        """Take a request over, and ask what the stores hold of it.

        done: called exactly once, in the courier's thread, within `timeout_s` seconds or so
        """
        now = self._clock()
        self._order(partial(self._delivery.look, key, attempt, done, timeout_s, now))

    def fetch(
        self,
        key: int,
        attempt: int,
        store: Store,
        start: int,
        stop: int,
        sink: Sink,
        done: Callable[[FetchResult], None],
    ) -> None:
        """Get the rows of all layers of positions start … stop-1, which are committed there.

        sink, done: called in the courier's thread, `sink` in order with some rows each time
        (position, rows, uint8 [rows][all layers], uint32 sums [rows][layers]), whose memory is
        valid until it returns; False ends the fetch. `done`: exactly once, after the last of them.
        """
        run = Run(key, attempt, 0, start, stop - start)
        self._order(partial(self._fetch, store, run, sink, done))

    def stats(self) -> dict[str, float]:
        """Bytes that wait, and since the start: bytes posted, tokens restored, fetches that ended
        because of a bad row.
        """
        return {
            "kv_queue_bytes": self.staging.used,
            "kv_sent_bytes": self.traffic.sent_bytes,
            "kv_restored_tokens": self.traffic.restored_tokens,
            "kv_bad_rows": self.traffic.bad_fetches,
        }

    def _commit(self, batch: Batch) -> None:
        lines = self._delivery.lines
        for store in batch.shares:
            if (line := lines.get(store)) is not None:
                line.handed += batch.nbytes
        self._order(partial(self._delivery.deliver, batch))

    def _dialed(self, who: Incarnation, result: ClientChannel | str) -> None:
        self._order(lambda: self._delivery.dialed(who, result, self._clock()))

    def _fetch(
        self, store: Store, run: Run, sink: Sink, done: Callable[[FetchResult], None]
    ) -> None:
        self._delivery.fetch(store, run, sink, done, self._clock())

    def _order(self, order: Callable[[], None] | None) -> None:
        self._orders.put(order)
        if self._on_bell:
            self._bell.ring()

    def _wake(self) -> None:
        self._order(None)

    def _check(self) -> None:
        if self._died is not None:
            raise RuntimeError("the courier's thread has died") from self._died

    # The thread.

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._round()
        except BaseException as error:
            self._died = error
            raise
        finally:
            self._delivery.close(self._clock())

    def _round(self) -> None:
        seen = self._bell.value()
        self._obey()
        rest = self._delivery.serve(self._clock())
        timeout = rest.until - self._clock()
        if timeout <= 0:
            return
        if not rest.on_bell:
            self._obey(timeout)
            return
        self._on_bell = True
        # Whoever gives an order now rings; whoever gave one before that is heard here.
        if self._orders.empty():
            self._bell.wait(seen, timeout)
        self._on_bell = False

    def _obey(self, timeout: float | None = None) -> None:
        """Do what was ordered; with a timeout, wait so long for the first order."""
        try:
            order = self._orders.get(timeout is not None, timeout)
            while True:
                if order is not None:
                    order()
                order = self._orders.get_nowait()
        except queue.Empty:
            return
