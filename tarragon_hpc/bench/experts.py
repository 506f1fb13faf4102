"""One expert's FFN on the CPU: the native kernel beside plain torch and vLLM's fused MoE kernel.

Hot: the same expert again and again, its weights in the caches as far as they fit. Cold: experts in
turn, more of them than the caches hold, which is what decoding a model looks like. The contenders
take turns within every repetition, so that a disturbance meets all of them.
"""

from __future__ import annotations

import importlib
import os
import statistics
import time
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from tarragon_hpc import native
from tarragon_hpc.errors import UserError
from tarragon_hpc.models.spec import ExpertShape
from tarragon_hpc.ops.reference import Rows, encode, random_expert

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.models.spec import Dtype
    from tarragon_hpc.ops.base import ExpertTensors

    # Prepares a batch of rows; the result computes it with the expert of that number.
    Contender = Callable[[int], Callable[[int], object]]

ROWS = (1, 2, 4, 8, 16, 32, 64)
DTYPES: tuple[Dtype, ...] = ("bfloat16", "float32")
_MIB = 1 << 20


class Time(NamedTuple):
    """Of one call, in microseconds."""

    median: float
    best: float


def run(
    *,
    hidden: int = 1024,
    ffn: int = 2048,
    threads: int = 1,
    repeats: int = 15,
    cold_bytes: int | None = None,
) -> dict[str, Any]:
    """Measure, print a table of medians, and return them with the best times, in microseconds.

    `rows`: one record per dtype, number of rows, contender and "hot" or "cold". `summary`: vLLM's
    (or, without vLLM, torch's) median over ours, and the speed at which a cold single row reads its
    weights beside that of a plain read of memory. `cold_bytes`: weights in turn for "cold", by
    default twice the last cache and at least 64 MiB. Raises UserError without the native kernel.
    """
    if native.reason is not None:
        raise UserError(f"bench experts measures the native kernel: {native.reason}")
    shape = ExpertShape(hidden=hidden, ffn=ffn)
    floor = _read_speed()
    console = Console()
    records: list[dict[str, Any]] = []
    summary: dict[str, float] = {"memory_read_gb_s": floor}
    for dtype in DTYPES:
        experts = _experts(shape, dtype, cold_bytes or max(64 * _MIB, 2 * _last_cache()))
        contenders = _contenders(shape, dtype, experts, threads)
        rival = "vllm" if "vllm" in contenders else "torch" if "torch" in contenders else None
        times = {m: _measure(contenders, m, len(experts), repeats) for m in ROWS}
        for m, by_kind in times.items():
            for (name, kind), (us, best) in by_kind.items():
                where = {"dtype": dtype, "rows": m, "contender": name, "kind": kind}
                records.append({**where, "us": us, "best_us": best})
                if name == rival:
                    ratio = us / by_kind["native", kind].median
                    summary[f"{rival}_over_native_{dtype}_{kind}_{m}"] = ratio
        nbytes = sum(a.nbytes for a in (experts[0].gate, experts[0].up, experts[0].down))
        summary[f"read_gb_s_{dtype}_1"] = nbytes / times[1]["native", "cold"].median / 1e3
        console.print(_table(shape, dtype, threads, times, nbytes, floor))
    return {
        "summary": summary,
        "hidden": hidden,
        "ffn": ffn,
        "threads": threads,
        "isa": native.module.ffn_instruction_sets()[0],
        "rows": records,
    }


def _last_cache() -> int:
    """Bytes of the last-level cache, 0 if the system does not say."""
    name = "SC_LEVEL3_CACHE_SIZE"
    return max(0, os.sysconf(name)) if name in os.sysconf_names else 0


def _experts(shape: ExpertShape, dtype: Dtype, nbytes: int) -> list[ExpertTensors]:
    """Equal experts of at least `nbytes` in all, in memory of their own each."""
    first = random_expert(shape, dtype, np.random.default_rng(0))
    one = first.gate.nbytes + first.up.nbytes + first.down.nbytes
    copies = (
        replace(first, gate=first.gate.copy(), up=first.up.copy(), down=first.down.copy())
        for _ in range(max(3, -(-nbytes // one)) - 1)
    )
    return [first, *copies]


def _contenders(
    shape: ExpertShape, dtype: Dtype, experts: list[ExpertTensors], threads: int
) -> dict[str, Contender]:
    out = {"native": _native(shape, dtype, experts, threads)}
    if find_spec("torch") is not None:
        out["torch"] = _torch(shape, dtype, experts, threads)
        if (fused := _vllm(shape, dtype, experts)) is not None:
            out["vllm"] = fused
    return out


def _native(
    shape: ExpertShape, dtype: Dtype, experts: list[ExpertTensors], threads: int
) -> Contender:
    from tarragon_hpc.ops.native_bank import NativeBank

    bank = NativeBank({(0, e): t for e, t in enumerate(experts)}, shape, threads)

    def prepare(m: int) -> Callable[[int], object]:
        x = encode(np.random.default_rng(1).standard_normal((m, shape.hidden)), dtype)
        batches = [Rows(e, x) for e in range(len(experts))]
        segments = [[rows.segment()] for rows in batches]

        def call(expert: int, _keep: list[Rows] = batches) -> None:
            bank.run(0, segments[expert])

        return call

    return prepare


def _torch(
    shape: ExpertShape, dtype: Dtype, experts: list[ExpertTensors], threads: int
) -> Contender:
    import torch

    from tarragon_hpc.ops import memory

    torch.set_num_threads(threads)
    kind = getattr(torch, dtype)
    weights = [tuple(memory.tensor(a, kind) for a in (t.gate, t.up, t.down)) for t in experts]

    def prepare(m: int) -> Callable[[int], object]:
        x = torch.randn(m, shape.hidden).to(kind)

        def call(expert: int) -> object:
            gate, up, down = weights[expert]
            return (torch.nn.functional.silu(x @ gate.t()) * (x @ up.t())) @ down.t()

        return call

    return prepare


def _vllm(shape: ExpertShape, dtype: Dtype, experts: list[ExpertTensors]) -> Contender | None:
    """vLLM's kernel, or None where vLLM is not there or was built for a GPU."""
    if find_spec("vllm") is None:
        return None
    import torch

    from tarragon_hpc.ops import memory

    ops = importlib.import_module("vllm._custom_ops")
    if not hasattr(torch.ops._C, "cpu_fused_moe"):
        return None
    kind = getattr(torch, dtype)
    gate, up, down = (
        torch.stack([memory.tensor(getattr(t, name), kind) for t in experts])
        for name in ("gate", "up", "down")
    )
    w13 = ops.cpu_prepack_moe_weight(torch.cat([gate, up], dim=1), "vec")
    w2 = ops.cpu_prepack_moe_weight(down, "vec")

    def prepare(m: int) -> Callable[[int], object]:
        x = torch.randn(m, shape.hidden).to(kind)
        y, weight = torch.empty_like(x), torch.ones(m, 1)
        ids = [torch.full((m, 1), e, dtype=torch.int32) for e in range(len(experts))]

        def call(expert: int) -> None:
            ops.cpu_fused_moe(y, x, w13, w2, None, None, weight, ids[expert], "silu", "vec")

        return call

    return prepare


def _measure(
    contenders: dict[str, Contender], m: int, experts: int, repeats: int
) -> dict[tuple[str, str], Time]:
    """Times by (contender, hot or cold)."""
    calls = {name: prepare(m) for name, prepare in contenders.items()}
    times: dict[tuple[str, str], list[float]] = {
        (name, kind): [] for kind in ("hot", "cold") for name in calls
    }
    for _ in range(repeats):
        for name, call in calls.items():
            for warm in range(3):
                us = _timed(call, 0)
                if warm:
                    times[name, "hot"].append(us)
    # The first turns only bring the caches to the state of all later ones.
    for turn in range(-experts, 2 * repeats):
        for name, call in calls.items():
            us = _timed(call, turn % experts)
            if turn >= 0:
                times[name, "cold"].append(us)
    return {key: Time(statistics.median(each), min(each)) for key, each in times.items()}


def _timed(call: Callable[[int], object], expert: int) -> float:
    start = time.perf_counter()
    call(expert)
    return (time.perf_counter() - start) * 1e6


def _read_speed() -> float:
    """GB/s of one thread that reads memory from end to end."""
    data = np.zeros(256 * _MIB // 8, np.uint64)
    data[:] = 1
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        data.max()
        seconds.append(time.perf_counter() - start)
    return float(data.nbytes / min(seconds) / 1e9)


def _table(
    shape: ExpertShape,
    dtype: Dtype,
    threads: int,
    times: dict[int, dict[tuple[str, str], Time]],
    nbytes: int,
    floor: float,
) -> Table:
    keys = list(times[ROWS[0]])
    table = Table(
        title=f"one expert, hidden {shape.hidden}, ffn {shape.ffn}, {dtype}, {threads} thread(s): "
        f"microseconds (memory reads at {floor:.1f} GB/s)"
    )
    table.add_column("rows", justify="right")
    for name, kind in keys:
        table.add_column(f"{name}\n{kind}", justify="right")
    table.add_column("native cold\nGB/s of weights", justify="right")
    table.add_column("native hot\nGFLOP/s", justify="right")
    flops = 6 * shape.hidden * shape.ffn
    for m, by_kind in times.items():
        table.add_row(
            str(m),
            *(f"{by_kind[key].median:.0f}" for key in keys),
            f"{nbytes / by_kind['native', 'cold'].median / 1e3:.1f}",
            f"{m * flops / by_kind['native', 'hot'].median / 1e3:.0f}",
        )
    return table
