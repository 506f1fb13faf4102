"""A service whose control connections are encrypted (`cluster.tls`)."""

from __future__ import annotations

import asyncio

import pytest

from tarragon_hpc.cluster.certificate import CERTIFICATE, make_certificate, run_tls
from tarragon_hpc.cluster.client import head_of
from tarragon_hpc.cluster.rendezvous import read_head, run_secret
from tarragon_hpc.errors import AuthError, ConnectFailed, UserError
from tarragon_hpc.wire import tls
from tarragon_hpc.wire.codec import client_decoder
from tarragon_hpc.wire.stream import connect


def test_it_serves_replaces_workers_and_listens_to_nobody_else(make_config, serving, caplog):
    async def scenario() -> None:
        async with serving(make_config(cluster={"tls": True})) as service:
            run_dir = service.info.run_dir
            assert (await service.complete(3)).status_code == 200
            async with head_of(run_dir) as head:
                await head.scale("ew", 3)
            await service.until(lambda s: sum(w["state"] == "serving" for w in s["workers"]) == 5)

            record, secret = read_head(run_dir), run_secret(run_dir)
            door = record.control_host, record.control_port
            with pytest.raises(ConnectFailed, match="as one does that expects TLS"):
                await connect(*door, secret, client_decoder())
            other = tls.client_context(make_certificate()[0])
            with pytest.raises(AuthError, match="does not have the run's certificate"):
                await connect(*door, secret, client_decoder(), context=other)
            stranger = connect(*door, bytes(32), client_decoder(), context=run_tls(run_dir))
            with pytest.raises(AuthError, match="does not know the run's secret"):
                await stranger

            # Another run's files, and its own put back.
            own = (run_dir / CERTIFICATE).read_text()
            (run_dir / CERTIFICATE).write_text(make_certificate()[0])
            with pytest.raises(UserError, match="is not running"):
                async with head_of(run_dir):
                    pass
            (run_dir / CERTIFICATE).write_text(own)
            assert (await service.status())["state"] == "serving"
            assert (await service.complete(2)).status_code == 200
            assert secret.hex() not in caplog.text

    asyncio.run(scenario())
