"""Control connections: TLS by the run's certificate, floods, replays."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import pytest

from tarragon_hpc.cluster import control
from tarragon_hpc.cluster.certificate import CERTIFICATE, issue, make_certificate, run_tls
from tarragon_hpc.cluster.control import ControlServer
from tarragon_hpc.errors import AuthError, ConfigError, ConnectFailed
from tarragon_hpc.wire import auth, tls
from tarragon_hpc.wire.codec import client_decoder
from tarragon_hpc.wire.stream import connect
from tarragon_hpc.wire.to_client import StatusReply
from tarragon_hpc.wire.to_head import StatusQuery

SECRET = bytes(range(32))


@contextlib.asynccontextmanager
async def head(context=None):
    """(port, why connections were dropped) of a control server."""
    drops: list[str] = []
    server = ControlServer(
        SECRET,
        workers=None,
        sequences=None,
        status=lambda: {"state": "fine"},
        stop=None,
        note=None,
        dropped=drops.append,
        saved=None,
        tls=context,
    )
    port = await server.start("127.0.0.1")
    try:
        yield port, drops
    finally:
        await server.close()


async def status(port, context=None, secret=SECRET):
    client = await connect("127.0.0.1", port, secret, client_decoder(), context=context)
    client.send(StatusQuery())
    async with asyncio.timeout(10):
        reply = await anext(client.messages())
    await client.close()
    assert isinstance(reply, StatusReply)
    return reply.status


def test_with_the_runs_certificate(tmp_path):
    async def scenario() -> None:
        async with head(issue(tmp_path)) as (port, _):
            assert await status(port, run_tls(tmp_path)) == {"state": "fine"}
            assert (tmp_path / CERTIFICATE).stat().st_mode & 0o777 == 0o600
            assert "KEY" not in (tmp_path / CERTIFICATE).read_text()

    asyncio.run(scenario())


def test_the_challenge_goes_on_inside(tmp_path):
    async def scenario() -> None:
        async with head(issue(tmp_path)) as (port, _):
            with pytest.raises(AuthError, match="secret"):
                await status(port, run_tls(tmp_path), bytes(32))

    asyncio.run(scenario())


def test_who_has_no_or_another_certificate_is_told_so(tmp_path, caplog):
    caplog.set_level("INFO", "tarragon_hpc")
    other = tls.client_context(make_certificate()[0])

    async def scenario() -> None:
        async with head(issue(tmp_path)) as (port, drops):
            with pytest.raises(ConnectFailed, match="as one does that expects TLS"):
                await status(port)
            with pytest.raises(AuthError, match="does not have the run's certificate"):
                await status(port, other)
            async with asyncio.timeout(10):
                while len(drops) < 2:
                    await asyncio.sleep(0.01)
            assert drops == ["handshake"] * 2
        async with head() as (port, _):
            with pytest.raises(ConnectFailed, match="as one does that expects no TLS"):
                await status(port, run_tls(tmp_path))

    asyncio.run(scenario())
    assert "the peer does not speak TLS 1.3" in caplog.text
    assert SECRET.hex() not in caplog.text


def test_nothing_older_than_tls_13(tmp_path):
    async def scenario() -> None:
        context = issue(tmp_path)
        async with head(context) as (port, _):
            old = run_tls(tmp_path)
            old.minimum_version = ssl.TLSVersion.TLSv1_2
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises((AuthError, ConnectFailed)):
                await status(port, old)

    asyncio.run(scenario())


def test_a_bad_certificate_file_is_one_line(tmp_path):
    assert run_tls(tmp_path) is None
    with pytest.raises(ConfigError, match="is missing, and cluster.tls is on"):
        run_tls(tmp_path, required=True)
    for text in (b"", b"nonsense", b"\xff", b"-----BEGIN CERTIFICATE-----\nAA==\n"):
        (tmp_path / CERTIFICATE).write_bytes(text)
        with pytest.raises(ConfigError, match="does not hold a certificate"):
            run_tls(tmp_path)


@pytest.mark.parametrize("secure", [False, True])
def test_a_flood_of_half_open_connections_keeps_nobody_out(tmp_path, monkeypatch, secure):
    monkeypatch.setattr(control, "_MAX_STRANGERS", 8)

    async def scenario() -> None:
        context = issue(tmp_path) if secure else None
        async with head(context) as (port, drops):
            flood = [await asyncio.open_connection("127.0.0.1", port) for _ in range(30)]
            flood[-1][1].write(auth.MAGIC)
            assert await status(port, run_tls(tmp_path)) == {"state": "fine"}
            async with asyncio.timeout(3):  # long before their time is up
                assert await flood[0][0].read() == b""
            assert drops.count("crowded") >= 22
            for _, writer in flood:
                writer.close()

    asyncio.run(scenario())


def test_what_was_recorded_opens_nothing():
    """A client's side of a good handshake and what it asked, played again byte by byte."""

    async def scenario() -> None:
        async with head() as (port, drops):
            recorded: list[bytes] = []

            async def relay(reader, writer) -> None:
                back, forth = await asyncio.open_connection("127.0.0.1", port)

                async def pump(source, target, tape) -> None:
                    while data := await source.read(4096):
                        tape.append(data)
                        target.write(data)
                    target.close()

                await asyncio.gather(pump(reader, forth, recorded), pump(back, writer, []))

            middle = await asyncio.start_server(relay, "127.0.0.1", 0)
            assert await status(middle.sockets[0].getsockname()[1]) == {"state": "fine"}
            middle.close()
            tape = b"".join(recorded)
            assert tape.startswith(auth.MAGIC)
            assert len(tape) > auth.HELLO_BYTES + auth.PROOF_BYTES
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(tape)
            async with asyncio.timeout(10):
                answer = await reader.read(auth.CHALLENGE_BYTES)
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""  # not even OK
            assert len(answer) == auth.CHALLENGE_BYTES
            writer.close()
            assert drops == ["handshake"]

    asyncio.run(scenario())
