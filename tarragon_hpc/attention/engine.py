"""The AW's engine: vLLM in this process, its experts elsewhere. The only file that drives vLLM.

One thread builds it, adds to it and steps it. Import it after `preload.preload()`, which sets what
vLLM reads from the environment when it is imported.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm import EngineArgs, LLMEngine
from vllm.config import CompilationConfig, KVTransferConfig
from vllm.exceptions import VLLMClientError, VLLMError
from vllm.forward_context import get_forward_context
from vllm.platforms import current_platform
from vllm.v1.worker import gpu_model_runner

from tarragon_hpc.attention import load_format
from tarragon_hpc.attention.checkpoints import Checkpoints
from tarragon_hpc.attention.deaf import deaf
from tarragon_hpc.attention.expert_call import ExpertCalls
from tarragon_hpc.attention.host_memory import CpuMemory, PinnedMemory
from tarragon_hpc.attention.kv_connector import checkpointing
from tarragon_hpc.attention.masked import masked_by_request
from tarragon_hpc.attention.remote_experts import check_coverage, remote_experts
from tarragon_hpc.attention.resume import Resumed
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
from tarragon_hpc.wire.common import Resumption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tarragon_hpc.attention.checkpoints import Connect
    from tarragon_hpc.attention.forwarder import Forwarder
    from tarragon_hpc.attention.found import Found
    from tarragon_hpc.attention.host_memory import HostMemory
    from tarragon_hpc.attention.kv_state import SequenceKv
    from tarragon_hpc.attention.settings import DeviceKind
    from tarragon_hpc.config import Config
    from tarragon_hpc.models.spec import ModelSpec
    from tarragon_hpc.wire.common import Peer, SamplingSpec, TokenDelta


@dataclass(slots=True)
class _Sequence:
    """`internal` is vLLM's own id; `emitted` counts the tokens of its output so far, and `masked`
    the expert calls that were left out since the last of them. `structure`: what the request calls
    the field that its output must follow, None if there is none.
    """

    internal: str
    attempt: int
    emitted: int
    structure: str | None = None
    masked: int = 0
    began: float | None = None
    """When it was added, if it was begun elsewhere and has no new token yet."""
    kv: SequenceKv | None = None


class Engine:
    """Sequences in, tokens out. Not thread-safe: everything is called by one thread."""

    def __init__(
        self,
        config: Config,
        spec: ModelSpec,
        forwarder: Forwarder,
        cpus: Sequence[int] | None,
        connect: Connect | None = None,
    ) -> None:
        """Build it and load the weights, all but the experts'.

        `cpus`: the CPUs this process is bound to, None if to none. `connect`: makes the courier to
        the checkpoint stores (see `Checkpoints`); None: nothing is checkpointed.
        Raises ConfigError for settings the engine cannot have and ClusterError for what only vLLM
        can tell.
        """
        self.threads = cpu_threads(config, cpus)
        torch.set_num_threads(self.threads)
        device: DeviceKind = "cpu" if current_platform.is_cpu() else "cuda"
        arguments = engine_arguments(
            config, spec, device, load_format.LOAD_FORMAT, CompilationConfig._attention_ops
        )
        connector = arguments.pop("kv_transfer_config")
        load_format.register()
        load_model_class(spec.architecture)
        self._checkpoints: Checkpoints | None = None
        try:
            if connector is not None:
                connector = KVTransferConfig(**connector)
            self._config = EngineArgs(
                **arguments, kv_transfer_config=connector
            ).create_engine_config()
            if device == "cpu" and config.attention.kv_cache is None:
                self._config.cache_config.kv_cache_memory_bytes = default_kv_cache(
                    kv_bytes_per_token(self._config), self._config.model_config.max_model_len
                )
            self._forwarder = forwarder
            self._calls = ExpertCalls(forwarder, self._host_memory(spec, device), _real_rows)
            if connect is not None:
                self._checkpoints = Checkpoints(
                    config.checkpoint, connect, lambda: self._calls.lost
                )
            with remote_experts(self._calls), checkpointing(self._checkpoints), deaf():
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
        self._resumed = Resumed(spec.vocab, self._core.scheduler)
        self._resumed.teach(gpu_model_runner)
        self._sequences: dict[str, _Sequence] = {}
        self._steps = self._tokens = self._lost_steps = self._finished = 0
        if self._checkpoints is not None:
            self._checkpoints.watch(self._calls)
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

    def add(
        self,
        request: str,
        prompt: Sequence[int],
        sampling: SamplingSpec,
        attempt: int = 1,
        tokens: Sequence[int] = (),
        found: Found | None = None,
    ) -> None:
        """Queue a sequence that goes on after `tokens`; it joins the next step that has room.

        `found`: what the checkpoint stores have of it. Raises RequestError if it can never run. The
        engine is none the worse for it.
        """
        if request in self._sequences:
            raise RequestError(f"request: {request!r} runs already", param="request")
        check_request(prompt, sampling, self._limits, tokens)
        if self._checkpoints is not None:
            self._checkpoints.expect(request, attempt, found)
        try:
            internal = self._llm.add_request(
                request, {"prompt_token_ids": list(prompt)}, sampling_params(sampling)
            )
        except (ValueError, VLLMClientError) as error:
            raise RequestError(one_line(error), param=getattr(error, "parameter", None)) from error
        structure = sampling.structure
        sequence = self._sequences[request] = _Sequence(
            internal, attempt, len(tokens), structure.param if structure else None
        )
        if attempt > 1:
            sequence.began = time.monotonic()
            resumed = self._core.scheduler.requests[internal]
            self._resumed.begin(resumed, tokens)
            self._grammars.advance(resumed, tokens)
        if self._checkpoints is not None:
            sequence.kv = self._checkpoints.prepare(internal)

    def abort(self, requests: Iterable[str], *, moved: bool = False) -> None:
        """Forget sequences; unknown ones are ignored. `moved`: another AW goes on with them."""
        known = [request for request in requests if request in self._sequences]
        if moved and self._checkpoints is not None:
            for request in known:
                self._checkpoints.move(self._sequences[request].internal)
        self._llm.abort_request(known)
        for request in known:
            self._resumed.forget(self._sequences.pop(request).internal)

    def step(self) -> Step:
        """Run the model once over what is scheduled.

        If the experts could not be reached, nothing of it counts: see `Step.failed`. Waiting
        sequences stay, and the engine goes on.
        """
        refused = self._refuse_structures()
        outputs = self._llm.step()
        self._steps += 1
        self._charge_masked()
        loss = self._calls.take_loss()
        if loss is not None:
            self._lost_steps += 1
            return Step(failed=self._discard(outputs), loss=loss, refused=refused)
        stuck = self._refuse_stuck(outputs)
        outputs = [output for output in outputs if output.request_id not in stuck]
        resumed = [self._resumption(output) for output in outputs if self._is_back(output)]
        running, waiting = self._core.scheduler.get_request_counts()
        return Step(
            [self._delta(output) for output in outputs],
            refused=refused | stuck,
            resumed=resumed,
            idle=waiting > 0 and running == 0,
        )

    def set_stores(self, peers: Sequence[Peer]) -> None:
        """These checkpoint stores serve now."""
        if self._checkpoints is not None:
            self._checkpoints.set_stores(peers)

    def look(self, request: str, attempt: int, done: Callable[[Found], None]) -> bool:
        """Ask the checkpoint stores what they have of a sequence that was begun elsewhere.

        `done` is called by another thread, for `add`. False: there are no stores to ask.
        """
        return self._checkpoints is not None and self._checkpoints.look(request, attempt, done)

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
            **(self._checkpoints.stats() if self._checkpoints is not None else {}),
        }

    def close(self) -> None:
        """Drop all sequences and give the memory back."""
        self._calls.serving = False
        if self._checkpoints is not None:
            self._checkpoints.close()
        self._grammars.close()
        self._llm.engine_core.shutdown()

    def _is_back(self, output: Any) -> bool:
        """Whether this is the first new token of a sequence that was begun elsewhere."""
        return self._sequences[output.request_id].began is not None

    def _resumption(self, output: Any) -> Resumption:
        sequence = self._sequences[output.request_id]
        assert sequence.began is not None
        seconds, sequence.began = time.monotonic() - sequence.began, None
        kv, computed = sequence.kv, self._resumed.computed(sequence.internal)
        restored = 0 if kv is None else kv.restored
        total = len(output.prompt_token_ids) + sequence.emitted
        return Resumption(
            request=output.request_id,
            attempt=sequence.attempt,
            restored=restored,
            cached=total - restored - computed,
            computed=computed,
            nbytes=0 if kv is None else kv.nbytes,
            seconds=seconds,
            reason="there are no checkpoint stores" if kv is None else kv.reason,
        )

    def _delta(self, output: Any) -> TokenDelta:
        sequence = self._sequences[output.request_id]
        delta = token_delta(output, sequence.emitted, sequence.masked, sequence.attempt)
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

        Full blocks of it have entered the prefix cache and are taken out of it.
        """
        lost = {output.request_id for output in outputs}
        running = {request.request_id for request in self._core.scheduler.running}
        failed = [
            request
            for request, sequence in self._sequences.items()
            if request in lost or sequence.internal in running
        ]
        cache = self._core.scheduler.kv_cache_manager
        for request in failed:
            for blocks in cache.get_block_ids(self._sequences[request].internal):
                cache.evict_blocks(set(blocks))
        self.abort(failed, moved=True)
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
