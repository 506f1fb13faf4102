"""How a worker looks for another head than the one it has. What it looks at is given to it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from tarragon_hpc.errors import TarragonError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

# A head that gives no sign of life for so long (`ALIVE_S` apart) may have been replaced.
QUIET_S = 2.0
ALIVE_S = 0.5

log = logging.getLogger(__name__)


class HeadPlace(NamedTuple):
    """Where a head listens, and the how-manieth of its run it is. `tls`: how to talk to it."""

    number: int
    host: str
    port: int
    tls: ssl.SSLContext | None = None


Seek: TypeAlias = "Callable[[], HeadPlace]"
"""Where the newest head listens, as far as can be seen now. Reads files; raises TarragonError."""


async def look(seek: Seek, limit_s: float) -> HeadPlace | None:
    """One look, in a thread; None if nothing was seen in time."""
    try:
        async with asyncio.timeout(limit_s):
            return await asyncio.to_thread(seek)
    except (TarragonError, TimeoutError) as error:
        log.debug("no head seen: %s", error)
        return None
