"""The other process of `bench datapath`: an EW that echoes, and the raw ping-pong beside it.

Run as `python -m tarragon_hpc.bench.echo_peer JSON`; prints one line when it listens, and ends when
its standard input does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from tarragon_hpc import native
from tarragon_hpc.bench import raw_medium
from tarragon_hpc.config.schema import BatchingConfig, TransportConfig
from tarragon_hpc.expert.server import ExpertServer
from tarragon_hpc.models.spec import Dtype, ExpertShape, ModelSpec
from tarragon_hpc.transport.auto import make_listener
from tarragon_hpc.transport.bell import ProcessDoorbell

if TYPE_CHECKING:
    from collections.abc import Collection

    from tarragon_hpc.ops.base import Segment


class EchoBank:
    """An ExpertBank whose experts return their input rows."""

    def __init__(self, experts: int, row_bytes: int) -> None:
        self._experts = frozenset(range(experts))
        self._row_bytes = row_bytes

    def experts(self) -> frozenset[int]:
        return self._experts

    def run(self, layer: int, segments: list[Segment]) -> None:
        for s in segments:
            native.module.gather_rows(s.x, s.index, s.count, s.y, self._row_bytes)

    def prepare(self, tensors: Any) -> Any:
        return tensors

    def add(self, prepared: Any) -> None:
        raise NotImplementedError

    def remove(self, experts: Collection[int]) -> None:
        raise NotImplementedError

    def nbytes(self) -> int:
        return 0


def echo_spec(
    experts: int, top_k: int, hidden: int, *, dtype: Dtype = "bfloat16", layers: int = 1
) -> ModelSpec:
    """A model of some MoE layers, as far as the expert server looks at it."""
    return ModelSpec(
        path="",
        family="mixtral",
        architecture="echo",
        dtype=dtype,
        layers=layers,
        moe_layers=tuple(range(layers)),
        experts=experts,
        top_k=top_k,
        shape=ExpertShape(hidden=hidden, ffn=1),
        vocab=1,
        max_len=1,
        eos_token_ids=(),
        bos_token_id=None,
    )


def main(argument: str) -> None:
    """Serve as the JSON argument says: transport, host, directory, secret, cpu, experts, hidden,
    floor."""
    options = json.loads(argument)
    if options["cpu"] is not None:
        os.sched_setaffinity(0, {options["cpu"]})
    end_floor = raw_medium.serve(options["floor"])
    config = TransportConfig.model_validate(options["transport"])
    bell = ProcessDoorbell(config.spin_us)
    listener = make_listener(
        config,
        runtime_dir=options["directory"],
        host=options["host"],
        worker="ew0",
        incarnation=1,
        secret=bytes.fromhex(options["secret"]),
        bell=bell,
    )
    spec = echo_spec(options["experts"], 1, options["hidden"])
    bank = EchoBank(spec.experts, spec.shape.hidden * 2)
    server = ExpertServer(bank, listener, bell, spec, 1, BatchingConfig())

    def stop_with_the_parent() -> None:
        sys.stdin.read()
        end_floor()
        server.stop("the benchmark is over", drain=False)

    threading.Thread(target=stop_with_the_parent, name="parent", daemon=True).start()
    print(json.dumps(listener.address()), flush=True)
    server.serve()


if __name__ == "__main__":
    main(sys.argv[1])
