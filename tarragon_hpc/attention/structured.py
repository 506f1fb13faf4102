"""Structured output: the grammars of an engine's sequences, and all that is done to vLLM for it.

vLLM 0.32 without a tokenizer of its own refuses structured output; with one it would check every
structure, and set up what makes grammars of it, in the thread that steps the engine. Here both are
done beside that thread, which is never held up: a sequence waits for its grammar, the others go on.
The backend is xgrammar for all sequences (vLLM's "auto" would keep to whatever the first one
needed), so that each AW makes the same grammar of a structure, and a lost AW's sequence goes on.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.structured_output.backend_xgrammar import (
    XgrammarBackend,
    validate_xgrammar_grammar,
)
from vllm.v1.structured_output.request import get_structured_output_key

from tarragon_hpc.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tarragon_hpc.wire.common import StructureSpec

log = logging.getLogger(__name__)

# A large schema takes seconds; a sequence does not wait for ever.
COMPILE_S = 30.0
_THREADS = 2
# Where in its sources xgrammar found the mistake.
_ORIGIN = re.compile(r"\[[\d:]+\] \S+\.(?:cc|h):\d+: ")


class StructuredParams(SamplingParams):  # type: ignore[misc]
    """vLLM's sampling parameters of a sequence with a structure; errors name `param`."""

    param: str = "structure"

    def _validate_structured_outputs(self, *_: object) -> None:
        """Not when the sequence is added: `Grammars` does it."""


def structured_params(structure: StructureSpec, arguments: dict[str, Any]) -> StructuredParams:
    """As vLLM would have them; `arguments` are all others. The structure is a checked one."""
    text: Any = structure.text
    if structure.kind == "json_object":
        text = True
    elif structure.kind == "choice":
        text = json.loads(text)
    return StructuredParams(
        structured_outputs=StructuredOutputsParams(**{structure.kind: text}),
        param=structure.param,
        **arguments,
    )


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A sequence whose grammar is being made. `until`: seconds on the monotonic clock."""

    request: Any
    until: float

    @property
    def grammar(self) -> Any:
        """A Future, or what came of it if the scheduler has seen it."""
        return self.request.structured_output_request._grammar

    @property
    def over(self) -> bool:
        """It waits no longer: it was aborted, or its grammar is made or cannot be."""
        aborted = self.request.is_finished()
        return aborted or not isinstance(self.grammar, Future) or self.grammar.done()

    def error(self) -> BaseException | None:
        """Why it is to be refused, if it is."""
        grammar = self.grammar
        if self.request.is_finished():
            return None
        if not self.over:
            return TimeoutError(f"could not be made into a grammar within {COMPILE_S:g} s")
        if isinstance(grammar, Future):
            return grammar.exception()
        return grammar if isinstance(grammar, Exception) else None


class Grammars:
    """Makes the grammars of one engine's sequences. Its methods belong to the engine's thread.

    `tokenizer` as vLLM has it, None if the model has none: every structure is refused then.
    """

    def __init__(self, core: Any, tokenizer: Any | None) -> None:
        """Take over vLLM's making of grammars; `core` is its EngineCore."""
        self._tokenizer = tokenizer
        self._config = core.vllm_config
        self._manager = core.structured_output_manager
        self._scheduler = core.scheduler
        self._manager.grammar_init = self._begin
        self._setting_up = threading.Lock()
        self._executor = ThreadPoolExecutor(_THREADS, "grammar")
        self._waiting: dict[str, _Waiting] = {}

    def __repr__(self) -> str:
        return f"Grammars({len(self._waiting)} being made)"

    def advance(self, request: Any, tokens: Sequence[int]) -> None:
        """Have a resumed sequence's grammar go past the tokens that its client has already.

        `request` is vLLM's Request, added but not scheduled yet. If they do not fit its structure
        the sequence is refused, as with a wrong structure. Without a structure nothing is done.
        """
        structured = request.structured_output_request
        if structured is not None and tokens:
            structured.grammar = _advanced(structured._grammar, request.request_id, list(tokens))

    def refused(self) -> dict[str, RequestError]:
        """Sequences, by vLLM's id, that have no usable structure: to be aborted before a step."""
        refused = {}
        for request_id, waiting in list(self._waiting.items()):
            if waiting.over or time.monotonic() >= waiting.until:
                del self._waiting[request_id]
                error = waiting.error()
                if error is not None:
                    refused[request_id] = _refusal(waiting.request.sampling_params.param, error)
        return refused

    def ended(self, request_id: str, param: str) -> RequestError:
        """Why vLLM has ended a sequence with an error."""
        waiting = self._waiting.pop(request_id, None)
        if waiting is not None and isinstance(waiting.grammar, Exception):
            return _refusal(param, waiting.grammar)  # failed when the step had begun
        return RequestError(f"{param}: the output came to where it allows no token", param=param)

    def close(self) -> None:
        """Begin no more grammars; those that are being made come to nothing."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _begin(self, request: Any) -> None:
        """In place of vLLM's: the sequence has been added, its grammar is to be made."""
        made = self._executor.submit(self._make, request)
        request.structured_output_request.grammar = made
        self._waiting[request.request_id] = _Waiting(request, time.monotonic() + COMPILE_S)

    def _make(self, request: Any) -> Any:
        """In a thread of the executor: vLLM's grammar. Raises whatever is wrong with it."""
        params = request.sampling_params
        if request.is_finished():
            raise ValueError("the sequence was aborted")
        backend = self._backend()
        validate_xgrammar_grammar(params)
        kind, text = get_structured_output_key(params.structured_outputs)
        grammar = backend.compile_grammar(kind, text, stop_token_ids=params.all_stop_token_ids)
        mask = backend.allocate_token_bitmask(1)
        grammar.fill_bitmask(mask, 0)
        if not mask.any():
            raise ValueError("allows no output at all")
        return grammar

    def _backend(self) -> Any:
        """What vLLM makes on the first use of structured output."""
        if self._tokenizer is None:
            raise ValueError("needs a tokenizer, and the model has none")
        with self._setting_up:
            if self._manager.backend is None:
                vocab = self._config.model_config.get_vocab_size()
                self._manager.backend = XgrammarBackend(self._config, self._tokenizer, vocab)
            return self._manager.backend


def _advanced(made: Any, request_id: str, tokens: list[int]) -> Future[Any]:
    """A grammar that has accepted the tokens, once it is made: in the thread that has made it."""
    advanced: Future[Any] = Future()

    def accept(made: Future[Any]) -> None:
        error = made.exception()
        if error is None and not made.result().accept_tokens(request_id, tokens):
            error = ValueError("does not fit what has been generated so far")
        if error is None:
            advanced.set_result(made.result())
        else:
            advanced.set_exception(error)

    if not isinstance(made, Future):
        ready, made = made, Future()
        made.set_result(ready)
    made.add_done_callback(accept)
    return advanced


def _refusal(param: str, error: BaseException) -> RequestError:
    """For the client: what vLLM or xgrammar says, without what it says about itself."""
    cause = error.__cause__ or error
    log.info("%s refused: %r", param, cause)
    why = _ORIGIN.sub("", " ".join(str(cause).split())) or type(cause).__name__
    return RequestError(f"{param}: {why}", param=param)
