"""Send requests to a gateway, a bounded number at once, and hand over each result as it comes.

Every request has an Idempotency-Key that follows from what it is: sent again, to the same head or
to its successor, it goes on from the tokens that are there, or gets the answer that it had.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import tenacity

from tarragon_hpc.errors import ClusterError
from tarragon_hpc.generate.outputs import Outcome

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from tarragon_hpc.generate.inputs import Request

_canonical = msgspec.json.Encoder(order="deterministic").encode
_TRIES = {429: 100, 503: 10, None: 6}  # of one request, by the last answer; None: no connection


_HANDOVER = "handover"  # the code of a 503 that says: another head goes on, this one ends


class _HandedOver(Exception):
    """The head ends: another one will answer what has no answer yet."""


class _Busy(Exception):
    """An answer that says: come back later."""

    def __init__(self, status: int | None, message: str) -> None:
        super().__init__(message)
        self.status = status


def idempotency_key(request: Request) -> str:
    """The same for a request that is the same: its id, where it goes and what it asks."""
    text = _canonical([request.custom_id, request.url, request.body])
    return f"batch-{hashlib.sha256(text).hexdigest()[:40]}"


class BatchClient:
    """Talks to one service. `endpoint` ends in /v1; where heads may change it is asked for (raises
    ClusterError while there is none), and again whenever there is no connection.

    concurrency: requests in flight at most. tls: whom to trust; None: as SSL_CERT_FILE says.
    patient: a service that cannot take requests is waited for, whatever that takes.
    sleep: waits between tries, for tests.
    """

    def __init__(
        self,
        endpoint: str | Callable[[], str],
        *,
        concurrency: int,
        api_key: str | None = None,
        tls: ssl.SSLContext | None = None,
        patient: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._endpoint = endpoint
        self._base = endpoint.removesuffix("/v1") if isinstance(endpoint, str) else ""
        self._concurrency = concurrency
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._patient = patient
        self._verify = tls if tls is not None else True
        self._transport = transport
        self._sleep = sleep

    async def run(self, requests: Iterable[Request], deliver: Callable[[Outcome], None]) -> None:
        """Answer all requests; `deliver` gets each outcome once, in the order they finish.

        Ends early, with fewer outcomes, if the head hands its run over. Raises ClusterError if the
        service stopped answering; what was delivered stays delivered.
        """
        todo = iter(requests)
        limits = httpx.Limits(max_connections=self._concurrency)
        # No limit on the answer: a long generation is not a failure, and a dead one is an error.
        timeout = httpx.Timeout(None, connect=10.0)
        async with httpx.AsyncClient(
            headers=self._headers, limits=limits, timeout=timeout, transport=self._transport,
            verify=self._verify,
        ) as http:  # fmt: skip
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._concurrency):
                        group.create_task(self._work(http, todo, deliver))
            except* ClusterError as gone:
                raise gone.exceptions[0] from None

    async def _work(
        self, http: httpx.AsyncClient, todo: Iterator[Request], deliver: Callable[[Outcome], None]
    ) -> None:
        with contextlib.suppress(_HandedOver):
            for request in todo:
                deliver(await self._answer(http, request))

    async def _answer(self, http: httpx.AsyncClient, request: Request) -> Outcome:
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Busy),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=5.0),
            stop=tenacity.stop_never if self._patient else _give_up,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return await retrying(self._try, http, request)
        except _Busy as busy:
            raise ClusterError(f"the service does not answer: {busy}") from None

    async def _try(self, http: httpx.AsyncClient, request: Request) -> Outcome:
        headers = {"Idempotency-Key": idempotency_key(request)}
        base = await self._where()
        try:
            reply = await http.post(base + request.url, json=request.body, headers=headers)
        except httpx.TransportError as error:
            if self._base == base:  # not if another request has asked anew meanwhile
                self._base = ""
            raise _Busy(None, f"{type(error).__name__} {error}".strip()) from None
        content = _content(reply)
        if reply.status_code == 503 and _error(content).get("code") == _HANDOVER:
            raise _HandedOver
        if reply.status_code in (429, 503):
            raise _Busy(reply.status_code, f"HTTP {reply.status_code} {_message(content)}")
        return Outcome(
            request.custom_id, reply.status_code, content, reply.headers.get("x-request-id")
        )

    async def _where(self) -> str:
        """The base URL of the service as it is known; asked for if it is not."""
        if not self._base:
            try:
                found = self._endpoint
                # Reads files of the run directory.
                url = found if isinstance(found, str) else await asyncio.to_thread(found)
            except ClusterError as error:
                raise _Busy(None, str(error)) from None
            self._base = url.removesuffix("/v1")
        return self._base


def _give_up(state: tenacity.RetryCallState) -> bool:
    """Whether this try was the last: a full queue empties in time, a lost service does not."""
    error = state.outcome.exception() if state.outcome is not None else None
    status = error.status if isinstance(error, _Busy) else None
    return state.attempt_number >= _TRIES[status]


def _content(reply: httpx.Response) -> Any:
    try:
        return reply.json()
    except ValueError:
        return reply.text


def _message(content: Any) -> str:
    return str(_error(content).get("message", ""))


def _error(content: Any) -> dict[str, Any]:
    error = content.get("error") if isinstance(content, dict) else None
    return error if isinstance(error, dict) else {}
