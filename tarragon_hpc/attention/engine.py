"""The AW's engine: vLLM in this process, its experts elsewhere. The only file that drives vLLM.

One thread builds it, adds to it and steps it. Import it after `preload.preload()`, which sets what
vLLM reads from the environment when it is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm import EngineArgs, LLMEngine
from vllm.config import CompilationConfig
from vllm.exceptions import VLLMClientError, VLLMError
from vllm.forward_context import get_forward_context
from vllm.platforms import current_platform

from tarragon_hpc.attention import load_format
from tarragon_hpc.attention.expert_call import ExpertCalls
from tarragon_hpc.attention.host_memory import CpuMemory, PinnedMemory
from tarragon_hpc.attention.masked import masked_by_request
from tarragon_hpc.attention.remote_experts import check_coverage, remote_experts
from tarragon_hpc.attention.sampling import sampling_params, token_delta
from tarragon_hpc.attention.seeded import keep_generators
from tarragon_hpc.attention.settings import context_length, default_kv_cache, engine_arguments
from tarragon_hpc.attention.step import Step
from tarragon_hpc.attention.structured import Grammars
from tarragon_hpc.attention.validate import Limits, check_request
from tarragon_hpc.attention.vllm_setup import (
    cpu_threads,
    explain,
    kv_bytes_per_token,
    load_model_class,
    load_tokenizer,
    one_line,
)
from tarragon_hpc.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tarragon_hpc.attention.forwarder import Forwarder
    from tarragon_hpc.attention.host_memory import HostMemory
    from tarragon_hpc.attention.settings import DeviceKind
    from tarragon_hpc.config import Config
    from tarragon_hpc.models.spec import ModelSpec
    from tarragon_hpc.wire.common import SamplingSpec, TokenDelta


@dataclass(slots=True)
class _Sequence:
    """`internal` is vLLM's own id; `emitted` counts the tokens handed out so far, and `masked` the
    expert calls that were left out since the last of them. `structure`: what the request calls the
    field that its output must follow, None if there is none.
    """

    internal: str
    structure: str | None = None
    emitted: int = 0
    masked: int = 0


class Engine:
    """Sequences in, tokens out. Not thread-safe: everything is called by one thread."""

    def __init__(
        self, config: Config, spec: ModelSpec, forwarder: Forwarder, cpus: Sequence[int] | None
    ) -> None:
        """Build it and load the weights, all but the experts'.

        `cpus`: the CPUs this process is bound to, None if to none. Raises ConfigError for settings
        the engine cannot have and ClusterError for what only vLLM can tell.
        """
        self.threads = cpu_threads(config, cpus)
        torch.set_num_threads(self.threads)
        device: DeviceKind = "cpu" if current_platform.is_cpu() else "cuda"
        arguments = engine_arguments(
            config, spec, device, load_format.LOAD_FORMAT, CompilationConfig._attention_ops
        )
        load_format.register()
        load_model_class(spec.architecture)
        try:
            self._config = EngineArgs(**arguments).create_engine_config()
            if device == "cpu" and config.attention.kv_cache is None:
                self._config.cache_config.kv_cache_memory_bytes = default_kv_cache(
                    kv_bytes_per_token(self._config), self._config.model_config.max_model_len
                )
            self._forwarder = forwarder
            self._calls = ExpertCalls(forwarder, self._host_memory(spec, device), _real_rows)
            with remote_experts(self._calls):
                self._llm = LLMEngine.from_vllm_config(self._config, disable_log_stats=True)
        except (ValueError, VLLMError) as error:  # pydantic's ValidationError is a ValueError
            raise explain(error) from error
        check_coverage(self._config, spec)
        tokenizer = load_tokenizer(spec.path)
        eos = None if tokenizer is None else tokenizer.eos_token_id
        # What a tokenizer would tell vLLM; the eos ids of the generation config it reads itself.
        self._llm.input_processor.renderer.get_eos_token_id = lambda: eos
        self._core = self._llm.engine_core.engine_core
        self._grammars = Grammars(self._core, tokenizer)
        self._runner = self._llm.model_executor.driver_worker.worker.model_runner
        if device == "cpu":
            keep_generators(self._runner)
        self._limits = Limits(
            spec.vocab, context_length(config, spec), self._config.model_config.max_logprobs
        )
        self._sequences: dict[str, _Sequence] = {}
        self._steps = self._tokens = self._lost_steps = self._finished = 0
        self._calls.serving = True

    def __repr__(self) -> str:
        model = self._config.model_config.model
        return f"Engine({model}, {self.kv_blocks} KV blocks, {len(self._sequences)} sequences)"

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._llm.has_unfinished_requests())

    @property
    def kv_blocks(self) -> int:
        """Number of KV blocks."""
        return int(self._config.cache_config.num_gpu_blocks)

    def add(self, request: str, prompt: Sequence[int], sampling: SamplingSpec) -> None:
        """Queue a sequence; it joins the next step that has room.

        Raises RequestError if it can never run. The engine is none the worse for it.
        """
        if request in self._sequences:
            raise RequestError(f"request: {request!r} runs already", param="request")
        check_request(prompt, sampling, self._limits)
        try:
            internal = self._llm.add_request(
                request, {"prompt_token_ids": list(prompt)}, sampling_params(sampling)
            )
        except (ValueError, VLLMClientError) as error:
            raise RequestError(one_line(error), param=getattr(error, "parameter", None)) from error
        structure = sampling.structure
        self._sequences[request] = _Sequence(internal, structure.param if structure else None)

    def abort(self, requests: Iterable[str]) -> None:
        """Forget sequences; unknown ones are ignored."""
        known = [request for request in requests if self._sequences.pop(request, None)]
        self._llm.abort_request(known)

    def step(self) -> Step:
        """Run the model once over what is scheduled.

        If the experts could not be reached, nothing of it counts: see `Step.failed`. Waiting
        sequences stay, and the engine goes on.
        """
        refused = self._refuse_structures()
        self._grammars.nap()
        outputs = self._llm.step()
        self._steps += 1
        self._charge_masked()
        loss = self._calls.take_loss()
        if loss is not None:
            self._lost_steps += 1
            return Step(failed=self._discard(outputs), loss=loss, refused=refused)
        stuck = self._refuse_stuck(outputs)
        tokens = [self._delta(output) for output in outputs if output.request_id not in stuck]
        return Step(tokens, refused=refused | stuck)

    def stats(self) -> dict[str, float]:
        """Counters and gauges for `status`; kv_use is a fraction."""
        running, waiting = self._core.scheduler.get_request_counts()
        return {
            "sequences": self._finished,
            "tokens": self._tokens,
            "steps": self._steps,
            "lost_steps": self._lost_steps,
            "running": running,
            "waiting": waiting,
            "kv_use": self._core.scheduler.kv_cache_manager.usage,
        }

    def close(self) -> None:
        """Drop all sequences and give the memory back."""
        self._calls.serving = False
        self._grammars.close()
        self._llm.engine_core.shutdown()

    def _delta(self, output: Any) -> TokenDelta:
        sequence = self._sequences[output.request_id]
        delta = token_delta(output, sequence.emitted, sequence.masked)
        sequence.masked = 0
        sequence.emitted += len(delta.token_ids)
        self._tokens += len(delta.token_ids)
        if output.finished:
            self._finished += 1
            del self._sequences[output.request_id]
        return delta

    def _refuse_structures(self) -> dict[str, RequestError]:
        """Drop the sequences that no grammar could be made for."""
        errors = self._grammars.refused()
        refused = {
            r: errors[s.internal] for r, s in self._sequences.items() if s.internal in errors
        }
        self.abort(refused)
        return refused

    def _refuse_stuck(self, outputs: list[Any]) -> dict[str, RequestError]:
        """Forget the sequences that vLLM has ended because their structure allowed no token."""
        stuck = {}
        for output in outputs:
            sequence = self._sequences[output.request_id]
            if sequence.structure and output.outputs[0].finish_reason == "error":
                del self._sequences[output.request_id]
                error = self._grammars.ended(sequence.internal, sequence.structure)
                stuck[output.request_id] = error
        return stuck

    def _charge_masked(self) -> None:
        """Note whose rows were computed without some of their experts."""
        masked = self._forwarder.take_masked()
        if masked is not None:
            by_id = masked_by_request(self._runner, masked)
            for sequence in self._sequences.values():
                sequence.masked += by_id.get(sequence.internal, 0)

    def _discard(self, outputs: list[Any]) -> list[str]:
        """Drop every sequence that was in a lost step: its KV cache holds garbage now.

        Full blocks of it have entered the prefix cache, so that is emptied as well.
        """
        lost = {output.request_id for output in outputs}
        running = {request.request_id for request in self._core.scheduler.running}
        failed = [
            request
            for request, sequence in self._sequences.items()
            if request in lost or sequence.internal in running
        ]
        self.abort(failed)
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("KV blocks of lost sequences are still in use")
        return failed

    def _host_memory(self, spec: ModelSpec, device: DeviceKind) -> HostMemory:
        if device == "cpu":
            return CpuMemory()
        rows = self._config.scheduler_config.max_num_batched_tokens
        return PinnedMemory(rows, spec.shape.hidden, spec.top_k, self._config.model_config.dtype)


def _real_rows(padded: int) -> int:
    """How many of a step's rows belong to a request; 0 while vLLM tries the model out."""
    metadata = get_forward_context().attn_metadata
    if not metadata:
        return 0
    layer = next(iter(metadata.values()))
    return min(padded, int(layer.num_actual_tokens))
