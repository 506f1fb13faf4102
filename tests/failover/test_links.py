"""Which transport joins whom, as AWs tell it: in the status while both ends are there, and in the
timeline if it is not the one to expect. Where head and workers meet.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import pytest

from tarragon_hpc.cluster.client import query_status
from tarragon_hpc.cluster.rendezvous import read_head
from tarragon_hpc.errors import ConfigError
from tarragon_hpc.transport.interfaces import LOOPBACK, read_interfaces

ALL = {"cs0": "tcp", "ew0": "shm", "ew1": "shm"}
WHY = {"cs0": "shm: no socket"}


def links(status) -> list[dict[str, str]]:
    return [w["links"] for w in status["workers"] if w["role"] == "aw"]


def test_the_status_tells_what_each_pair_uses(make_config, serving):
    async def scenario() -> None:
        async with serving(make_config(checkpoint={"stores": 1})) as service:
            await service.until(lambda s: links(s) == [ALL, ALL])
            aw0 = await service.worker("aw0")
            assert aw0["link_reasons"] == WHY
            assert "links" not in await service.worker("ew0")
            told = [e for e in service.timeline() if e["event"] == "peer linked"]
            assert sorted((e["worker"], e["peer"], e["kind"], e["reason"]) for e in told) == [
                (aw, "cs0", "tcp", WHY["cs0"]) for aw in ("aw0", "aw1")
            ]
            os.kill((await service.worker("ew1"))["pid"], signal.SIGKILL)
            await service.until(lambda s: all("ew1" not in found for found in links(s)))
            await service.until(lambda s: links(s) == [ALL, ALL])
            os.kill(aw0["pid"], signal.SIGKILL)
            await service.until(lambda s: links(s)[0] == {})
            await service.until(lambda s: links(s) == [ALL, ALL])
            run_dir = service.info.run_dir
        ended = await query_status(run_dir)
        assert ended["state"] == "ended"
        assert links(ended) == [{}, {}]

    asyncio.run(scenario())


def test_head_and_workers_meet_at_the_interface_that_is_set(make_config, serving):
    async def scenario() -> None:
        addresses = [a for i in read_interfaces() if i.up for a in i.addresses]
        address = next((a for a in addresses if a != LOOPBACK), LOOPBACK)
        async with serving(make_config(transport={"interface": address})) as service:
            record = read_head(service.info.run_dir)
            assert record.control_host == address
            other = LOOPBACK if address != LOOPBACK else "127.0.0.2"
            with pytest.raises(OSError):
                socket.create_connection((other, record.control_port), timeout=5).close()
            assert (await service.complete(3)).status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("transport", "problem"),
    [
        ({"interface": "ib7"}, r"^transport\.interface: ib7: neither an interface, an address"),
        ({"kind": "rdma", "rdma": {"device": "mlx7_7"}}, r"^transport\.kind: rdma: .*mlx7_7"),
    ],
)
def test_what_this_node_does_not_have_is_told_before_there_is_a_run(
    make_config, serving, transport, problem, tmp_path
):
    async def scenario() -> None:
        with pytest.raises(ConfigError, match=problem):
            async with serving(make_config(transport=transport)):
                pass

    asyncio.run(scenario())
    assert not (tmp_path / "runs").exists()
