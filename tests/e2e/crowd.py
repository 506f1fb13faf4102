"""Clients at the door of a service, and what it answered to them before anything failed."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from tarragon_hpc.bench.arrivals import Stream
from tarragon_hpc.bench.injection import is_whole
from tarragon_hpc.bench.load import stream_completion
from tarragon_hpc.bench.service import serving
from tarragon_hpc.cluster.faults import Victim, find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import TypeAlias

    from tarragon_hpc.bench.service import Service

    # Seconds from the beginning, or a question that is asked after every arrival of tokens.
    When: TypeAlias = float | Callable[[list[Stream]], bool]
    Event: TypeAlias = tuple[When, Callable[[], Any]]

STREAMS = 12
NEW_TOKENS = 96
PATIENCE_S = 120


def decoding(tokens: int) -> Callable[[list[Stream]], bool]:
    """When every stream has so many tokens."""
    return lambda streams: min(len(s.tokens) for s in streams) >= tokens


def begun(count: int) -> Callable[[list[Stream]], bool]:
    """When so many streams have some tokens; the others are in their prefill or wait for it."""
    return lambda streams: sum(len(s.tokens) >= 3 for s in streams) >= count


class Crowd:
    """Prompts, one stream each, and the answers to them.

    lengths: of the prompts; more: fields of every request, such as a temperature (the seed is then
    another one for every prompt).
    """

    def __init__(
        self,
        service: Service,
        vocab: int,
        seed: int = 0,
        *,
        lengths: Sequence[int] | None = None,
        new_tokens: int = NEW_TOKENS,
        **more: Any,
    ) -> None:
        rng = random.Random(seed)
        if lengths is None:
            lengths = [1, 200, *(rng.randint(2, 120) for _ in range(STREAMS - 2))]
        self.service = service
        self.prompts = [[rng.randrange(3, vocab) for _ in range(n)] for n in lengths]
        self._new_tokens = new_tokens
        self._more = more
        self.expected = [s.tokens for s in asyncio.run(self.ask())]
        assert all(len(tokens) == new_tokens for tokens in self.expected)
        # A degenerate model (one token for ever) would prove nothing.
        assert all(len(set(tokens)) > min(8, new_tokens // 4) for tokens in self.expected)

    # Requests.

    async def ask(self, *events: Event) -> list[Stream]:
        """All prompts at once, and the events on the way."""
        streams = [Stream(i, time.monotonic()) for i in range(len(self.prompts))]
        plot = _Plot(streams, events)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(self._one(stream, plot.look) for stream in streams))
            await plot.end()
        return streams

    def check(self, *events: Event) -> list[Stream]:
        """Ask again while things happen: every stream must be what it was."""
        streams = asyncio.run(self.ask(*events))
        self._compare(streams)
        return streams

    @contextmanager
    def busy(self) -> Iterator[list[Stream]]:
        """Ask all prompts again and again while the body runs; yields the streams so far.

        At the end every stream must be what it was.
        """
        streams: list[Stream] = []
        over = threading.Event()

        async def keep_asking(prompt: int) -> None:
            while not over.is_set():
                streams.append(Stream(prompt, time.monotonic()))
                await self._one(streams[-1], lambda: None)
                if streams[-1].error is not None:
                    return

        async def everybody() -> None:
            await asyncio.gather(*(keep_asking(i) for i in range(len(self.prompts))))

        thread = threading.Thread(target=asyncio.run, args=(everybody(),))
        thread.start()
        try:
            yield streams
        finally:
            over.set()
            thread.join(PATIENCE_S)
        assert not thread.is_alive()
        self._compare(streams)

    async def _one(self, stream: Stream, look: Callable[[], None]) -> None:
        body = {
            "prompt": self.prompts[stream.prompt],
            "max_tokens": self._new_tokens,
            "temperature": 0,
            "seed": stream.prompt,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
            **self._more,
        }

        def take(_: str, tokens: list[int]) -> None:
            stream.take(tokens, time.monotonic())
            look()

        try:
            stream.error = await stream_completion(self.service.endpoint, body, take)
        except OSError as error:
            stream.error = repr(error)
        stream.done = stream.error is None

    def _compare(self, streams: list[Stream]) -> None:
        assert {s.error for s in streams} == {None}
        wrong = [s.prompt for s in streams if s.tokens != self.expected[s.prompt]]
        assert not wrong, [(self.prompts[p], self.expected[p]) for p in wrong[:1]]

    # The service.

    def status(self) -> dict[str, Any]:
        """As `tarragon status --json` has it, without its failures, for a tenth of the price."""
        answer = httpx.get(self.service.endpoint.removesuffix("/v1") + "/status", timeout=30)
        answer.raise_for_status()
        return answer.json()

    def workers(self) -> list[dict[str, Any]]:
        return self.status()["workers"]

    def worker(self, name: str) -> dict[str, Any]:
        return next(w for w in self.workers() if w["id"] == name)

    def names(self, role: str) -> list[str]:
        return [w["id"] for w in self.workers() if w["role"] == role]

    def victim(self, name: str) -> Victim:
        return Victim(find_target(self.status(), name, os.uname().nodename))

    def kill(self, name: str) -> Callable[[], object]:
        """Take aim; what is returned kills that incarnation of the worker."""
        victim = self.victim(name)
        return lambda: victim.signal("kill")

    def kill_all(self, *names: str, pauses: Sequence[float]) -> Callable[[], Any]:
        """The same for several, one after the other; pauses: seconds after each but the last."""
        kills = [self.kill(name) for name in names]

        async def strike() -> None:
            for kill, pause in zip(kills, [0.0, *pauses], strict=True):
                await asyncio.sleep(pause)
                kill()

        return strike

    def scale(self, role: str, count: int) -> None:
        """`tarragon scale`, in the background."""
        command = [sys.executable, "-m", "tarragon_hpc.cli", "scale"]
        command += [str(self.service.run_dir), f"{role}={count}"]
        threading.Thread(target=subprocess.run, args=(command,)).start()

    def until(
        self, condition: Callable[[dict[str, Any]], object], seconds: float = 30.0
    ) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while True:
            status = self.status()
            if condition(status):
                return status
            assert time.monotonic() < end, status
            time.sleep(0.05)

    def whole(self) -> dict[str, Any]:
        """Wait until every worker serves and every expert has all its replicas."""
        return self.until(is_whole, PATIENCE_S / 2)

    def until_protected(self) -> dict[str, Any]:
        """Wait until requests run and nearly all KV of every one of them is in a store."""

        def protected(status: dict[str, Any]) -> bool:
            kept = status["checkpoint"]
            return 0 < kept["requests"] == kept["protected"]

        return self.until(protected)

    # What the timeline says.

    def timeline(self) -> list[dict[str, Any]]:
        text = (self.service.run_dir / "timeline.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def mark(self) -> int:
        """Now, for `since`."""
        return len(self.timeline())

    def since(self, mark: int, event: str) -> list[dict[str, Any]]:
        """The lines of that name since a mark."""
        return [line for line in self.timeline()[mark:] if line["event"] == event]


class _Plot:
    """What is to happen while streams run."""

    def __init__(self, streams: list[Stream], events: Sequence[Event]) -> None:
        self._streams = streams
        self._waiting = [event for event in events if callable(event[0])]
        timed = [event for event in events if not callable(event[0])]
        self._tasks = [asyncio.create_task(self._later(*event)) for event in timed]

    def look(self) -> None:
        """Tokens have arrived."""
        for event in [e for e in self._waiting if e[0](self._streams)]:
            self._waiting.remove(event)
            self._tasks.append(asyncio.create_task(self._later(0.0, event[1])))

    async def end(self) -> None:
        """All streams have ended."""
        assert not self._waiting, "something should have happened on the way, and did not"
        await asyncio.gather(*self._tasks)

    async def _later(self, seconds: float, happen: Callable[[], Any]) -> None:
        await asyncio.sleep(seconds)
        result = happen()
        if inspect.isawaitable(result):
            await result


def start(
    tiny_models: Callable[..., Path], directory: Path, family: str, **sections: Any
) -> tuple[Any, int]:
    """(a context manager: a service of this family, its vocabulary). sections: see `Config`."""
    model = tiny_models(family)
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    config = {
        "model": {"path": str(model), "dtype": "float32"},
        "gateway": {"port": 0},
        **sections,
    }
    config["attention"] = {
        "workers": 2,
        "kv_cache": "128MiB",
        "max_num_batched_tokens": 256,
        **sections.get("attention", {}),
    }
    config["cluster"] = {"max_restarts": 1000, **sections.get("cluster", {})}
    config["detection"] = {
        "stopped_grace_s": 1.5,
        "heartbeat_misses": 5,
        **sections.get("detection", {}),
    }
    return serving(config, directory), vocab
