"""The requests that survive their client, and their head: streams to resume, answers to ask again.

The next head of a run (`Keeper.take_over`) reads what the ones before have written down
(`request_log`), makes the same events and answers again, and goes on where the tokens end, as soon
as an attention worker serves.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from tarragon_hpc.errors import RequestError, TarragonError
from tarragon_hpc.gateway.answer import Answer, digest
from tarragon_hpc.gateway.chat import ChatFormat
from tarragon_hpc.gateway.completions import CompletionFormat
from tarragon_hpc.gateway.fields import read_request, shown
from tarragon_hpc.gateway.generation import Generation
from tarragon_hpc.gateway.records import Kept, Opened
from tarragon_hpc.gateway.replay import Replay
from tarragon_hpc.gateway.request_log import log_files, recover
from tarragon_hpc.gateway.restore import first_attempt
from tarragon_hpc.gateway.schema import ChatRequest, CompletionRequest
from tarragon_hpc.gateway.shelf import Shelf
from tarragon_hpc.gateway.stream import events

if TYPE_CHECKING:
    from pathlib import Path

    from tarragon_hpc.gateway.formats import Format
    from tarragon_hpc.gateway.generation import Service
    from tarragon_hpc.gateway.records import Kind
    from tarragon_hpc.gateway.request_log import RequestLog
    from tarragon_hpc.gateway.schema import GenerationRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """A request as it came. holder: whose it is. name: its X-Request-Id. key: Idempotency-Key."""

    kind: Kind
    body: Any
    holder: bytes
    name: str
    key: str | None = None

    @property
    def digest(self) -> bytes:
        """Equal for equal requests."""
        return digest(self.kind, self.body)


class Keeper:
    """What is kept. limit: of either kind, at most. keep_s: how long something goes on without a
    client, and how long it stays after its end. notes: the log of this head.

    Memory is bounded: each is as long as its generation may get (`max_tokens` of its sequences).
    """

    def __init__(self, service: Service, notes: RequestLog, limit: int, keep_s: float) -> None:
        self._service = service
        self._notes = notes
        self._keep_s = keep_s
        self._kept: dict[Replay | Answer, Kept] = {}
        self._replays = Shelf[Replay](limit, self._forget)
        self._answers = Shelf[Answer](limit, self._forget)
        self._waking: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Keeper({self._replays} streams, {self._answers} answers)"

    def stream(self, generation: Generation, form: Format, request: GenerationRequest,
               origin: Origin) -> Replay:  # fmt: skip
        """Begin a resumable stream, which owns the generation from now on."""
        kept = self._note(generation, origin)
        return self._stream(generation, form, request, kept)

    def answer(self, generation: Generation, form: Format, origin: Origin) -> Answer:
        """Begin an answer that may be asked for again; it owns the generation from now on."""
        if (other := self.asked(origin)) is not None:
            generation.__exit__()
            return other
        return self._answer(generation, form, self._note(generation, origin))

    def asked(self, origin: Origin) -> Answer | None:
        """The answer to this very request, if it was sent before. Raises RequestError if something
        else was, under its key.
        """
        found = self._answers.find(origin.holder, origin.key or "")
        if found is not None:
            found.check(origin.digest)
        return found

    def find(self, name: str, holder: bytes) -> Replay:
        """The stream that this holder calls so. Raises RequestError (404)."""
        replay = self._replays.find(holder, name)
        if replay is None:
            raise RequestError(
                f"request {shown(name)}: there is no resumable stream of this id (any more)",
                code="request_not_found",
                status=404,
            )
        return replay

    def take_over(self, run_dir: Path, head: int) -> int:
        """Begin the log of the head of this number, and go on with what those before it have left.

        Returns how many requests that are. Until the service serves for the first time they wait,
        and so does the time after which they would be given up or forgotten. What cannot be read
        is named in the process's log and left out.
        """
        try:
            files = log_files(run_dir)
        except OSError as error:
            log.warning("%s: no request of an earlier head is found: %s", run_dir, error.strerror)
            files = []
        found, wrong = recover(files)
        for problem in wrong:
            log.warning("%s: %s", run_dir, problem)
        self._notes.open(run_dir, head, found)
        things = [thing for kept in found if (thing := self._restore(kept, head)) is not None]
        if things:
            self._waking = asyncio.create_task(self._wake(things), name="keeper")
        return len(things)

    def unfinished(self) -> list[str]:
        """The sequences, by the names that workers know, that the next head would go on with."""
        return [
            sequence
            for thing, kept in self._kept.items()
            if not thing.ended
            for sequence, log in zip(kept.opened.sequences, kept.logs, strict=True)
            if log.finish is None
        ]

    def suspend(self, reason: str) -> None:
        """The next head goes on with all of this: nothing more is written down or made here.

        Clients are told the reason, and to come back to that head.
        """
        self._notes.close()
        for thing in (*self._replays, *self._answers):
            thing.suspend(reason)

    async def _wake(self, things: list[Replay | Answer]) -> None:
        await self._service.sessions.served.wait()
        for thing in things:
            thing.wake()

    def _note(self, generation: Generation, origin: Origin) -> Kept:
        sequences = generation.sequences
        opened = Opened(
            id=generation.id,
            created=generation.created,
            kind=origin.kind,
            body=msgspec.Raw(msgspec.json.encode(origin.body)),
            holder=origin.holder.hex(),
            names=[generation.id, origin.name],
            prompts=generation.prompts,
            sequences=[state.request for state in sequences],
            sampling=[state.sampling for state in sequences],
            key=origin.key,
        )
        kept = Kept(opened, [state.log for state in sequences])
        self._notes.opened(kept)
        return kept

    def _restore(self, kept: Kept, head: int) -> Replay | Answer | None:
        opened = kept.opened
        request: CompletionRequest | ChatRequest
        try:
            body = msgspec.json.decode(opened.body)
            if opened.kind == "completions":
                request = read_request(CompletionRequest, body)
            else:
                request = read_request(ChatRequest, body)
            if request.n * len(opened.prompts) != len(opened.sequences):
                raise RequestError(f"n: is {request.n} with {len(opened.sequences)} sequences")
        except (TarragonError, msgspec.DecodeError) as error:
            log.warning("request %s of an earlier head cannot go on: %s", opened.id, error)
            self._notes.forgotten(kept.name)
            return None
        generation = Generation(
            self._service,
            request,
            opened.prompts,
            self._service.sessions.reopen(kept, first_attempt(head), ordered=request.stream),
            id=opened.id,
            created=opened.created,
        )
        form: Format
        if isinstance(request, ChatRequest):
            form = ChatFormat(request, generation)
        else:
            form = CompletionFormat(request, generation)
        if request.stream:
            return self._stream(generation, form, request, kept, asleep=True)
        return self._answer(generation, form, kept, asleep=True)

    def _stream(
        self,
        generation: Generation,
        form: Format,
        request: GenerationRequest,
        kept: Kept,
        *,
        asleep: bool = False,
    ) -> Replay:
        source = events(generation, form, request.stream_options)
        drop = self._replays.drop
        replay = Replay(kept.opened.id, generation, source, self._keep_s, drop, asleep=asleep)
        self._kept[replay] = kept
        self._replays.put(replay, bytes.fromhex(kept.opened.holder), kept.opened.names)
        replay.begin()
        return replay

    def _answer(
        self, generation: Generation, form: Format, kept: Kept, *, asleep: bool = False
    ) -> Answer:
        async def source() -> dict[str, Any]:
            return form.response(await generation.collect())

        opened = kept.opened
        key = opened.key or ""
        asked = digest(opened.kind, msgspec.json.decode(opened.body))
        drop = self._answers.drop
        answer = Answer(key, generation, source(), asked, self._keep_s, drop, asleep=asleep)
        self._kept[answer] = kept
        self._answers.put(answer, bytes.fromhex(opened.holder), [key])
        answer.begin()
        return answer

    def _forget(self, thing: Replay | Answer) -> None:
        self._notes.forgotten(self._kept.pop(thing).name)
