"""The KV of one engine's sequences: kept in the checkpoint stores, brought back from them.

Between vLLM's connector (`kv_connector.py`), which tells what the engine does, and the courier,
the thread that talks to the stores. Everything here runs in the engine thread.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeAlias

from tarragon_hpc.attention.found import Found
from tarragon_hpc.attention.kv_layout import kv_layout
from tarragon_hpc.attention.kv_pause import Pauser
from tarragon_hpc.attention.kv_restore import Restorer
from tarragon_hpc.attention.kv_rows import make_rows
from tarragon_hpc.attention.kv_save import Saver
from tarragon_hpc.attention.kv_state import Scheduled, SequenceKv
from tarragon_hpc.checkpoint.choice import worth_restoring
from tarragon_hpc.checkpoint.protection import Protection
from tarragon_hpc.wire.kv import request_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tarragon_hpc.attention.expert_call import ExpertCalls
    from tarragon_hpc.checkpoint.courier import Courier
    from tarragon_hpc.checkpoint.looking import LookResult
    from tarragon_hpc.config.schema import CheckpointConfig
    from tarragon_hpc.wire.common import Peer


Connect: TypeAlias = "Callable[[Sequence[int], Callable[[int], Any]], Courier]"


class Checkpoints:
    """See the module's text.

    connect: makes and starts the courier, once it is known how many bytes a row has in each layer
        and where the memory for them should come from
    lost: whether the step under way is lost, so that its rows must not be kept
    """

    groups: Sequence[Any]
    """vLLM's KV-cache groups; set by the connector."""

    def __init__(
        self,
        config: CheckpointConfig,
        connect: Connect,
        lost: Callable[[], bool],
    ) -> None:
        self._config = config
        self._connect = connect
        self._lost = lost
        self._stores = False
        self._coming: SequenceKv | None = None
        self._sequences: dict[str, SequenceKv] = {}
        self._rate: float | None = None
        self._stepped: tuple[float, int] | None = None
        self._pauser: Pauser | None = None
        self._step: list[Scheduled] = []

    def on_caches(self, caches: Mapping[str, Any], layers: Mapping[str, Any]) -> None:
        """vLLM has allocated its caches. Raises ClusterError if they cannot be copied."""
        layout = kv_layout(caches, self.groups, layers)
        sizes = [group.block_tokens for group in layout.groups]
        rows = make_rows(layout)
        courier = self._connect(layout.row_bytes, rows.memory)
        self._layers = frozenset(layer.name for layer in layout.layers)
        self._token_bytes = sum(layout.row_bytes)
        config = self._config
        self._courier = courier
        self._protection = Protection(config.replicas, config.catch_up, self._token_bytes)
        self._saver = Saver(courier, self._protection, rows, sizes)
        self._restorer = Restorer(courier, rows, sizes, check=config.checksums)
        if config.pause_every is not None:
            self._pauser = Pauser(courier, self._saver, config.pause_every)

    # For the engine.

    def watch(self, calls: ExpertCalls) -> None:
        """Copy rows, and send them, around the expert calls of a step."""
        calls.meanwhile = self._saver.copy
        calls.on_dispatched = self._courier.gate.close
        calls.on_combined = self._courier.gate.open

    def set_stores(self, peers: Sequence[Peer]) -> None:
        """These stores serve now."""
        self._stores = bool(peers)
        self._courier.set_stores(list(peers))

    def look(self, request: str, attempt: int, done: Callable[[Found], None]) -> bool:
        """Ask the stores what they keep of a sequence; `done` is called by another thread.

        False: there is none to ask.
        """
        if not self._stores:
            return False

        def answer(result: LookResult) -> None:
            tokens = result.tokens.tolist()
            done(Found(request, attempt, result.holders, tokens, result.reason))

        self._courier.look(request_key(request), attempt, answer)
        return True

    def expect(self, request: str, attempt: int, found: Found | None) -> None:
        """The next new sequence of the engine is this one."""
        self._coming = SequenceKv(request, request_key(request), attempt, None, found)

    def prepare(self, internal: str) -> SequenceKv:
        """A sequence's tokens are complete: decide what of them to restore."""
        kv = self._sequences[internal]
        if kv.found is None:
            kv.reason = "no checkpoint store serves"
            return kv
        if not kv.found.holders:
            kv.reason = kv.found.reason
            return kv
        kv.held = kv.found.usable(kv.vllm.all_token_ids)
        if kv.held == 0:
            kv.reason = "nothing that fits is committed"
        elif self._config.restore == "always" or worth_restoring(
            kv.held,
            kv.held * self._token_bytes,
            bytes_per_s=self._restorer.bytes_per_s,
            tokens_per_s=self._rate,
        ):
            kv.usable = kv.held
        else:
            kv.reason = "computing it anew is cheaper"
        return kv

    def move(self, internal: str) -> None:
        """Another AW goes on with the sequence: the stores must keep what they have of it."""
        if internal in self._sequences:
            self._sequences[internal].moved = True

    def stats(self) -> dict[str, float]:
        """For heartbeats."""
        return {
            **self._courier.stats(),
            **self._protection.stats(),
            "kv_failed_restores": self._restorer.failures,
        }

    def close(self) -> None:
        """End the courier."""
        self._courier.close()

    # For the connector.

    def on_new(self, request: Any) -> None:
        """vLLM has taken the sequence that was expected."""
        kv, self._coming = self._coming, None
        if kv is not None:
            kv.vllm = request
            self._sequences[request.request_id] = kv

    def to_restore(self, request: Any, cached: int) -> int:
        """How many positions after the `cached` ones to load from a store."""
        kv = self._sequences.get(request.request_id)
        if kv is None or kv.asked:
            return 0
        return max(0, kv.usable - cached)

    def on_allocated(self, request: Any, block_ids: Sequence[Sequence[int]], external: int) -> None:
        """There are blocks for what `to_restore` said."""
        kv = self._sequences[request.request_id]
        self._restorer.ask(kv, kv.usable - external, external, block_ids)

    def on_finished(self, request: Any) -> None:
        """The sequence has ended, however."""
        kv = self._sequences.pop(request.request_id, None)
        if kv is None:
            return
        self._protection.close(kv.key)
        if not kv.moved:
            self._courier.free(kv.key, kv.attempt)

    def plan(self, scheduled: Any) -> None:
        """A step is about to run; what is to be restored is sent for, and comes meanwhile."""
        self._restorer.begin()
        now = time.monotonic()
        self._protection.set_stores(self._courier.stores)
        if self._pauser is None:  # which waits for its answers itself
            for answer in self._courier.answers():
                self._protection.answered(*answer)
        blocks = scheduled.kv_connector_block_state
        starts = {new.req_id: new.num_computed_tokens for new in scheduled.scheduled_new_reqs}
        cached = scheduled.scheduled_cached_reqs
        starts.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        step = []
        for internal, count in scheduled.num_scheduled_tokens.items():
            kv = self._sequences.get(internal)
            if kv is None:
                continue
            if not kv.opened:
                self._open(kv)
            end, tables = starts[internal] + count, blocks.get_block_ids(internal)
            step.append(Scheduled(kv, end, tables))
        if self._pauser is None:
            self._saver.plan(step, now)
        self._step = step
        self._stepped = (now, scheduled.total_num_scheduled_tokens)

    def on_layer(self, name: str) -> None:
        """The attention of a layer has been computed."""
        if name in self._layers:
            self._saver.layer_computed()

    def on_step_end(self) -> None:
        """The model has run, or would have if anything had been scheduled."""
        if self._pauser is None:
            self._saver.finish(counts=not self._lost())
        elif not self._lost():
            self._pauser.step(self._step)
        if self._stepped is not None and self._stepped[1] >= 64:
            began, tokens = self._stepped
            rate = tokens / max(1e-6, time.monotonic() - began)
            self._rate = rate if self._rate is None else (self._rate + rate) / 2
        self._stepped = None

    def take_loads(self) -> tuple[set[str], set[str]]:
        """vLLM's ids of the loads that have ended, and those of them that failed."""
        return self._restorer.take_finished()

    def _open(self, kv: SequenceKv) -> None:
        """Its first step: from now on its rows are kept."""
        kv.opened = True
        holders = {} if kv.found is None else kv.found.holders
        held = {store: min(positions, kv.held) for store, positions in holders.items()}
        self._protection.open(kv.key, kv.attempt, held)
