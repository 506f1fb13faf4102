"""A courier's rounds, one by one, with a clock that only the test moves."""

from __future__ import annotations

from tarragon_hpc.checkpoint.batch import make_batch
from tarragon_hpc.checkpoint.delivery import Delivery
from tarragon_hpc.checkpoint.dialing import Dialer
from tarragon_hpc.checkpoint.gate import Gate
from tarragon_hpc.checkpoint.pieces import Piece
from tarragon_hpc.checkpoint.row_layout import RowLayout
from tarragon_hpc.checkpoint.sizes import geometry
from tarragon_hpc.checkpoint.staging import Staging
from tarragon_hpc.checkpoint.traffic import Traffic
from tarragon_hpc.config.schema import CheckpointConfig
from tarragon_hpc.transport.inproc import InprocConnector, InprocDoorbell, InprocNetwork
from tarragon_hpc.wire import kv
from tests.unit.checkpoint.aw_side import SECRET, FakeStore, fill

ROW_BYTES = (8, 24)


class Rounds:
    """A delivery, without a thread. Connections are made at once."""

    def __init__(self, checksums=True, **config):
        self.network = InprocNetwork()
        self.layout = RowLayout(ROW_BYTES)
        self.staging = Staging(1 << 16)
        self.traffic = Traffic(lambda: self.now)
        self.wakes = 0
        self.gate = Gate(self.wake)
        self.now = 100.0
        connector = InprocConnector(self.network, "aw0", 1, SECRET, InprocDoorbell())
        config = CheckpointConfig.model_validate({"stores": 1, "slot_bytes": 512} | config)
        self.dials = []
        dialer = Dialer(
            connector,
            geometry(self.layout, config),
            lambda who, result: self.delivery.dialed(who, result, self.now),
            spawn=self.dials.append,
        )
        self.delivery = Delivery(self.layout, dialer, self.gate, self.traffic, checksums=checksums)

    @property
    def news(self):
        """What stores have answered."""
        return [answer for _, answer in self.delivery.news]

    def wake(self):
        self.wakes += 1

    def serve(self, after=0.0):
        self.now += after
        return self.delivery.serve(self.now)

    def dial(self):
        while self.dials:
            self.dials.pop()()

    def connect(self, *names):
        stores = [FakeStore(self, name) for name in names]
        self.delivery.want([s.peer() for s in stores])
        self.serve()
        self.dial()
        self.serve()
        for store in stores:
            store.step()
        self.serve()
        assert len(self.delivery.lines) == len(stores)
        return stores if len(stores) > 1 else stores[0]

    def put(self, key=7, start=0, length=1, stores=None, heeded=0):
        pieces = [Piece(s, key, 1, 0, start, length) for s in stores or self.delivery.lines]
        batch = make_batch(pieces, self.layout, self.staging, self.delivery.deliver)
        batch.heeded = dict.fromkeys(batch.shares, heeded)
        for store in batch.shares.keys() & self.delivery.lines.keys():
            self.delivery.lines[store].handed += batch.nbytes
        batch.commit(fill(batch))
        return batch


def puts(store):
    return [f for f in store.frames if f.kind == kv.PUT]
