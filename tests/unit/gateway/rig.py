"""Sessions without HTTP: what was sent to the workers, and how a client reads."""

from __future__ import annotations

import asyncio

from tarragon_hpc.errors import RequestError, Unavailable
from tarragon_hpc.gateway.sessions import Sessions
from tarragon_hpc.wire.common import SamplingSpec, TokenDelta
from tarragon_hpc.wire.to_head import Tokens
from tarragon_hpc.wire.to_worker import Abort, Submit

SPEC = SamplingSpec(max_tokens=8)


class Rig:
    """Sessions with serving AWs, what was sent to them, and what the timeline was told."""

    def __init__(self, workers=("aw0", "aw1"), max_requests=8, spec=SPEC, **options):
        self.sent, self.told, self.spec = [], [], spec
        self.sessions = Sessions(
            lambda w, m: self.sent.append((w, m)),
            max_requests,
            tell=lambda event, *who, **detail: self.told.append((event, who, detail)),
            **options,
        )
        self.sessions.set_serving(True, "")
        for worker in workers:
            self.sessions.on_worker_serving(worker, 1)

    def open(self, *prompts):
        return self.sessions.open([(prompt, self.spec) for prompt in prompts or ([1],)])

    def submitted(self):
        return [(w, m.request) for w, m in self.sent if isinstance(m, Submit)]

    def submits(self):
        """(worker, request, attempt, tokens) of every Submit."""
        sent = [(w, m) for w, m in self.sent if isinstance(m, Submit)]
        return [(w, m.request, m.attempt, m.tokens) for w, m in sent]

    def aborted(self, *, moved=False):
        sent = [(w, m) for w, m in self.sent if isinstance(m, Abort) and m.moved is moved]
        return [(w, r) for w, m in sent for r in m.requests]

    def tokens(self, worker, *items, incarnation=1, attempt=1):
        deltas = [TokenDelta(*i, attempt=attempt) for i in items]
        self.sessions.on_tokens(Tokens(worker, incarnation, deltas))


async def read(handle, tokens=None, finish=None):
    """What a client gets: tokens and finish per sequence, and the error that ended it."""
    tokens = {} if tokens is None else tokens
    finish = {} if finish is None else finish
    try:
        async for delta in handle:
            tokens.setdefault(delta.sequence, []).extend(delta.token_ids)
            finish[delta.sequence] = delta.finish
    except (Unavailable, RequestError) as error:
        return tokens, finish, error
    return tokens, finish, None


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 5))
