"""More and fewer workers while the service answers: nothing fails, nothing is left behind."""

from __future__ import annotations

import asyncio

import pytest

from tarragon_hpc.orchestrator.apply import replay
from tarragon_hpc.orchestrator.journal import read_journal


def workers(*names: str):
    """Exactly these, and all of them serve."""

    def check(status) -> bool:
        return status["state"] == "serving" and {
            w["id"]: w["state"] for w in status["workers"]
        } == (dict.fromkeys(names, "serving"))

    return check


def test_up_and_down_and_up_again_without_a_failed_request(make_config, serving):
    async def scenario() -> None:
        async with serving(make_config(experts={"workers": 2, "shadows": 1})) as service:
            done = asyncio.Event()

            async def load() -> list[int]:
                codes = []
                while not done.is_set():
                    codes.append((await service.complete(20)).status_code)
                return codes

            clients = [asyncio.create_task(load()) for _ in range(4)]
            assert await service.scale("ew", 3) is None
            assert await service.scale("aw", 3) is None
            await service.until(workers("aw0", "aw1", "ew0", "ew1", "aw2", "ew2"))
            await service.until(lambda s: not any(w.get("loading") for w in s["workers"]))
            assert len((await service.worker("ew2"))["experts"]) == 2
            long = [asyncio.create_task(service.complete(200)) for _ in range(6)]
            await service.until(lambda s: s["requests"]["running_on"].get("aw2"))
            assert await service.scale("ew", 2) is None
            assert await service.scale("aw", 1) is None
            await service.until(workers("aw0", "ew0", "ew1"))
            for answer in await asyncio.gather(*long):
                assert answer.json()["usage"]["completion_tokens"] == 200
            assert await service.scale("aw", 2) is None
            await service.until(workers("aw0", "aw1", "ew0", "ew1"))
            assert (await service.worker("aw1"))["incarnation"] == 2
            done.set()
            codes = [code for client in clients for code in await client]
            assert set(codes) == {200}
            status = await service.status()
            assert status["coverage"]["masked_single"] == ["ew0", "ew1"]
            left = ["worker told to stop", "worker leaving", "worker stopped", "worker removed"]
            assert [e for e in service.told("ew2") if e in left] == left
            state = replay(e.event for e in read_journal(service.info.run_dir / "journal.jsonl"))
            assert list(state.workers) == ["aw0", "ew0", "ew1", "aw1"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("role", "count", "problem"),
    [
        ("xs", 1, "unknown role 'xs'"),
        ("cs", 1, "checkpoint.stores is 0"),
        ("ew", 0, "must be from 1"),
        ("ew", 9, "more EWs than the model's 8 experts"),
        ("ew", 1, "experts.shadows is 1"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changes(make_config, serving, role, count, problem):
    async def scenario() -> None:
        async with serving(make_config(experts={"workers": 2, "shadows": 1})) as service:
            before = service.timeline()
            assert problem in (await service.scale(role, count) or "")
            assert service.timeline() == before

    asyncio.run(scenario())
