"""How long the host at the other end of a control connection has been silent."""

from __future__ import annotations

import asyncio
import struct

import pytest

from tarragon_hpc.wire.codec import head_decoder, worker_decoder
from tarragon_hpc.wire.stream import accept, connect, unheard_s
from tarragon_hpc.wire.to_head import Heartbeat

SECRET = bytes(32)


@pytest.mark.parametrize(
    ("retransmits", "last_ack_ms", "expected"),
    [(0, 0, 0.0), (0, 60_000, 0.0), (1, 60_000, 0.0), (2, 1500, 1.5), (9, 60_000, 60.0)],
)
def test_only_who_was_told_something_twice_is_silent(retransmits, last_ack_ms, expected):
    info = struct.pack("=BBB5x13I", 1, 0, retransmits, *[7] * 12, last_ack_ms)
    assert len(info) == 60
    assert unheard_s(info) == expected


def test_a_peer_that_does_not_read_is_not_silent():
    """Its host answers, even when there is no more room there."""

    async def scenario() -> None:
        came: asyncio.Future = asyncio.get_running_loop().create_future()

        async def serve(reader, writer) -> None:
            came.set_result(await accept(reader, writer, SECRET, head_decoder()))

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        mine = await connect(*server.sockets[0].getsockname(), SECRET, worker_decoder())
        theirs = await came
        assert (mine.unheard_s(), theirs.unheard_s()) == (0.0, 0.0)
        while mine.backlog < 1 << 20:
            mine.send(Heartbeat("aw0", 1, {"x" * 1000: 1.0}))
        for _ in range(8):
            await asyncio.sleep(0.1)
            assert mine.unheard_s() == 0.0
        assert mine.backlog > 0
        mine._writer.transport.abort()
        await theirs.close()
        server.close()
        assert mine.unheard_s() == 0.0  # closed

    asyncio.run(scenario())
