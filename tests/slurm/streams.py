"""Streams that their client can come back to, across heads."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.slurm.service import Run

_RETRY_S = 0.2


class Resumable(threading.Thread):
    """A client with one stream, which it takes up again until it has all of it.

    tokens: so far. events: the number of the last one. broken: how often the stream, or the way to
    the head, broke off. handed_over: how often a head that left said to come back.
    """

    def __init__(self, run: Run, prompt: Sequence[int], new_tokens: int, patience_s: float) -> None:
        super().__init__(daemon=True)
        self.tokens: list[int] = []
        self.events = 0
        self.broken = self.handed_over = 0
        self.problem: str | None = None
        self._run = run
        self._name = ""
        self._until = time.monotonic() + patience_s
        self._body = {
            "prompt": list(prompt),
            "max_tokens": new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "resumable": True,
            "return_token_ids": True,
        }

    def run(self) -> None:
        with httpx.Client(timeout=httpx.Timeout(10, read=60)) as http:
            while time.monotonic() < self._until:
                try:
                    if self._read(http):
                        return
                except httpx.HTTPError:
                    self.broken += 1
                if self.problem is not None:
                    return
                time.sleep(_RETRY_S)
        self.problem = "not whole in time"

    def _read(self, http: httpx.Client) -> bool:
        """Whether the end has come."""
        base = self._run.endpoint
        if not self._name:
            request = http.stream("POST", f"{base}/completions", json=self._body)
        else:
            query = {"after": self.events}
            request = http.stream("GET", f"{base}/requests/{self._name}/stream", params=query)
        with request as answer:
            if answer.status_code >= 500:
                answer.read()
                return False
            if answer.status_code != 200:
                self.problem = f"HTTP {answer.status_code}: {answer.read().decode()}"
                return False
            return any(self._take(line) for line in answer.iter_lines())

    def _take(self, line: str) -> bool:
        if line.startswith("id: "):
            number = int(line.removeprefix("id: "))
            if number != self.events + 1:
                self.problem = f"event {number} after {self.events}"
            self.events = number
        if not line.startswith("data: "):
            return False
        if line == "data: [DONE]":
            return True
        event = json.loads(line.removeprefix("data: "))
        if "error" in event and event["error"]["code"] == "handover":
            self.handed_over += 1  # to come back is what these last words ask for
            return False
        if "error" in event:
            self.problem = str(event["error"])
            return True
        self._name = event["id"]
        for choice in event["choices"]:
            self.tokens += choice["token_ids"]
        return False
