"""Which transport joins whom, as AWs tell it: in the status while both ends are there, in the
timeline if it is not the one to expect, and in the journal.
"""

from __future__ import annotations

import asyncio
import os
import signal

from tarragon_hpc.cluster.client import query_status

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
            assert [(e["worker"], e["peer"], e["kind"], e["reason"]) for e in told] == [
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
