"""Real vLLM, ours and plain, side by side in one process; experts computed here, honestly."""

from __future__ import annotations

import ctypes
import functools
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from tarragon_hpc.models.spec import ModelSpec

KV_CACHE = 64 << 20
MAX_LEN = 512


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.vllm)
            for kind in ("DeprecationWarning", "FutureWarning"):  # torch's and vLLM's own
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}"))


@pytest.fixture(scope="session", autouse=True)
def _vllm() -> None:
    import torch

    from tarragon_hpc.attention.preload import preload

    torch.set_num_threads(1)  # of plain vLLM too: more would spin on a busy machine
    preload()


class LocalExperts:
    """A Forwarder that computes the experts here, in fp32, from the checkpoint's tensors.

    Written from the models' published definitions, with plain torch. `fail` makes the next calls
    raise, the given one of "dispatch" or "combine". `calls` records (layer, rows).
    """

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        from safetensors import safe_open

        self.hidden, self.top_k = spec.shape.hidden, spec.top_k
        self.tensors: dict[str, torch.Tensor] = {}
        for file in sorted(path.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    if ".experts." in name:
                        self.tensors[name] = tensors.get_tensor(name).float()
        self.calls: list[tuple[int, int]] = []
        self.fail: str | None = None

    def dispatch(self, layer: int, rows: int, hidden: int, topk_ids: int) -> Any:
        self._maybe_fail("dispatch")
        self.calls.append((layer, rows))
        return layer, rows, hidden, topk_ids

    def combine(self, ticket: Any, weights: int, out: int) -> None:
        import torch

        self._maybe_fail("combine")
        layer, rows, hidden, topk_ids = ticket
        x = view(hidden, (rows, self.hidden), torch.float32)
        ids = view(topk_ids, (rows, self.top_k), torch.int32)
        topk_weights = view(weights, (rows, self.top_k), torch.float32)
        result = view(out, (rows, self.hidden), torch.float32)
        result.zero_()
        for k in range(self.top_k):
            for expert in ids[:, k].unique().tolist():
                chosen = ids[:, k] == expert
                result[chosen] += topk_weights[chosen, k, None] * self.expert(
                    layer, expert, x[chosen]
                )

    def take_masked(self) -> None:
        return None

    def expert(self, layer: int, expert: int, x: torch.Tensor) -> torch.Tensor:
        import torch.nn.functional as F  # noqa: N812

        t, start = self.tensors, f"model.layers.{layer}."
        if f"{start}mlp.experts.gate_up_proj" in t:  # gpt-oss: gate and up interleaved
            both = x @ t[f"{start}mlp.experts.gate_up_proj"][expert]
            both = both + t[f"{start}mlp.experts.gate_up_proj_bias"][expert]
            gate, up = both[:, 0::2].clamp(max=7.0), both[:, 1::2].clamp(-7.0, 7.0)
            act = (up + 1) * gate * (1.702 * gate).sigmoid()
            down = act @ t[f"{start}mlp.experts.down_proj"][expert]
            return down + t[f"{start}mlp.experts.down_proj_bias"][expert]
        if f"{start}block_sparse_moe.experts.0.w1.weight" in t:  # mixtral
            w1, w2, w3 = (
                t[f"{start}block_sparse_moe.experts.{expert}.{w}.weight"]
                for w in ("w1", "w2", "w3")
            )
        else:
            w1, w2, w3 = (
                t[f"{start}mlp.experts.{expert}.{w}_proj.weight"] for w in ("gate", "down", "up")
            )
        return (F.silu(x @ w1.T) * (x @ w3.T)) @ w2.T

    def _maybe_fail(self, call: str) -> None:
        from tarragon_hpc.errors import PeerLost

        if self.fail == call:
            raise PeerLost("ew1", "killed by the test")


def view(address: int, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor over memory that somebody else owns."""
    import torch

    size = shape[0] * shape[1] * dtype.itemsize
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype).view(shape)


def keep_for_good(llm: Any) -> None:
    """Its finalizer destroys the process groups of all, and collects garbage for seconds."""
    llm.engine_core._finalizer.detach()


@dataclass
class Output:
    """Everything one sequence produced; `logprobs` as the engine in question gives them."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish: str | None = None
    stop_reason: Any = None


@dataclass(frozen=True)
class Case:
    """One sequence: `params` are names that vLLM and SamplingSpec share; greedy by default."""

    prompt: list[int]
    params: dict[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        return {"temperature": 0, "max_tokens": 16, **self.params}


class Plain:
    """vLLM as anybody would run it, tokenizer and all.

    `batched`: tokens per step. vLLM fails where a prompt goes in chunks and has a seed.
    """

    def __init__(self, path: Path, batched: int = 64) -> None:
        from vllm import EngineArgs, LLMEngine

        arguments = EngineArgs(
            model=str(path),
            dtype="float32",
            enforce_eager=True,
            max_model_len=MAX_LEN,
            max_num_seqs=16,
            max_num_batched_tokens=batched,
            kv_cache_memory_bytes=KV_CACHE,
            compilation_config={"custom_ops": ["all", "-rotary_embedding"]},
            disable_log_stats=True,
        )
        self.llm = LLMEngine.from_engine_args(arguments)
        keep_for_good(self.llm)

    def generate(self, cases: list[Case]) -> list[Output]:
        """Run all cases at once."""
        from vllm import SamplingParams

        for i, case in enumerate(cases):
            prompt = {"prompt_token_ids": case.prompt}
            self.llm.add_request(str(i), prompt, SamplingParams(**case.arguments))
        done: dict[str, Output] = {}
        while self.llm.has_unfinished_requests():
            for output in self.llm.step():
                o = output.outputs[0]
                done[output.request_id] = Output(
                    list(o.token_ids), list(o.logprobs or []), o.finish_reason, o.stop_reason
                )
        return [done[str(i)] for i in range(len(cases))]


class Ours:
    """The AW's engine, its experts computed by `experts`.

    `weights`: another directory to load from; what describes the model stays that of `path`.
    `attention`: keys of that section of the configuration; checkpoint: the whole section, and
    `connect` what makes the maker of the courier of it.
    """

    def __init__(
        self,
        path: Path,
        weights: Path | None = None,
        *,
        checkpoint: dict[str, Any] | None = None,
        connect: Any = None,
        **attention: Any,
    ) -> None:
        from tarragon_hpc.attention.engine import Engine
        from tarragon_hpc.config import load_config
        from tarragon_hpc.models.describe import describe

        config = load_config(
            {
                "model": {"path": str(path), "dtype": "float32", "max_model_len": MAX_LEN},
                "attention": {
                    "max_num_seqs": 16,
                    "max_num_batched_tokens": 64,
                    "kv_cache": KV_CACHE,
                    "threads": 1,
                    **attention,
                },
                "checkpoint": checkpoint or {},
            }
        )
        spec = replace(describe(path, "float32"), path=str(weights or path))
        self.experts = LocalExperts(path, spec)
        courier = connect(config.checkpoint) if connect is not None else None
        self.engine = Engine(config, spec, self.experts, None, courier)
        keep_for_good(self.engine._llm)

    def add(self, case: Case, request: str = "0") -> None:
        from tarragon_hpc.wire.common import SamplingSpec

        self.engine.add(request, case.prompt, SamplingSpec(**case.arguments))

    def resume(
        self,
        case: Case,
        tokens: list[int],
        request: str = "0",
        attempt: int = 2,
        found: Any = None,
    ) -> None:
        """Go on with a case that has produced some tokens elsewhere."""
        from tarragon_hpc.wire.common import SamplingSpec

        sampling = SamplingSpec(**case.arguments)
        self.engine.add(request, case.prompt, sampling, attempt, tokens, found)

    def generate(self, cases: list[Case]) -> list[Output]:
        """Run all cases at once."""
        for i, case in enumerate(cases):
            self.add(case, str(i))
        outputs = self.finish()
        return [outputs[str(i)] for i in range(len(cases))]

    def finish(self) -> dict[str, Output]:
        """Step until nothing is left; what every sequence produced meanwhile."""
        return self.finish_resumed()[0]

    def finish_resumed(self) -> tuple[dict[str, Output], list[Any]]:
        """The same, and which sequences went on that had been begun elsewhere."""
        outputs: dict[str, Output] = defaultdict(Output)
        resumed: list[Any] = []
        next_index: dict[str, int] = {}
        while self.engine.has_work:
            step = self.engine.step()
            assert not step.failed
            resumed += step.resumed
            for delta in step.tokens:
                o = outputs[delta.request]
                assert delta.index == next_index.get(delta.request, delta.index)
                next_index[delta.request] = delta.index + len(delta.token_ids)
                o.token_ids += delta.token_ids
                o.logprobs += delta.logprobs or []
                o.finish, o.stop_reason = delta.finish, delta.stop_reason
        return outputs, resumed


@pytest.fixture(scope="session")
def plain() -> Callable[..., Plain]:
    """Plain vLLM over a checkpoint, built once per session."""
    return functools.cache(Plain)


@pytest.fixture(scope="session")
def ours() -> Callable[..., Ours]:
    """The AW's engine over a checkpoint, built once per session."""
    return functools.cache(Ours)
