"""A run from its start to its end, and what is left of it: nothing but its directory."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from tarragon_hpc.cluster.client import query_status, stop_run
from tarragon_hpc.cluster.head import run_service
from tarragon_hpc.cluster.rendezvous import read_head
from tarragon_hpc.errors import ClusterError, ConfigError, ModelError
from tarragon_hpc.orchestrator.apply import replay
from tarragon_hpc.orchestrator.journal import read_journal
from tarragon_hpc.orchestrator.state import RunPhase


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_serve_and_stop_leaves_only_the_run_directory(make_config, serving, runtime_root):
    async def scenario() -> None:
        async with serving(make_config()) as service:
            status = await service.status()
            assert status["state"] == "serving"
            assert status["epoch"] == 1
            assert status["endpoint"] == service.info.endpoint
            assert [w["state"] for w in status["workers"]] == ["serving"] * 4
            held = [w["experts"] for w in status["workers"] if w["role"] == "ew"]
            assert sorted(held[0] + held[1]) == list(range(8))
            assert status["requests"]["open"] == 0
            answer = await service.complete(3)
            assert answer.status_code == 200
            assert answer.json()["usage"]["completion_tokens"] == 3
            await service.until(lambda s: all(w["stats"] for w in s["workers"]))
            metrics = (await service.http.get(service.info.endpoint[:-2] + "metrics")).text
            assert 'tarragon_workers{role="ew",state="serving"} 2.0' in metrics
            assert 'tarragon_worker_stat{name="beat",worker="aw0"} 1.0' in metrics
            assert len(list(runtime_root.glob("tarragon-*"))) == 1
            pids = [w["pid"] for w in status["workers"]]
            service.stop.set()
            assert await service.task == 0
            assert all(map(gone, pids))
            assert not list(runtime_root.glob("tarragon-*"))
            after = await service.status()
            assert after["state"] == "ended"
            assert {w["state"] for w in after["workers"]} == {"stopped"}
            assert {w["exit"] for w in after["workers"]} == {"exit status 0"}
            port = int(service.info.endpoint.split(":")[-1].split("/")[0])
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
            assert await stop_run(service.info.run_dir, 1.0) is False

    asyncio.run(scenario())


def test_the_journal_of_a_whole_run_replays_to_its_last_state(make_config, serving):
    async def scenario() -> Path:
        async with serving(make_config()) as service:
            await service.complete(2)
        return service.info.run_dir

    run_dir = asyncio.run(scenario())
    entries = read_journal(run_dir / "journal.jsonl")
    state = replay(entry.event for entry in entries)
    assert state.phase is RunPhase.ENDED
    assert (state.epoch, state.stale, state.failed) == (1, 0, False)
    assert [e.wall for e in entries] == sorted(e.wall for e in entries)


@pytest.mark.parametrize("how", ["signal", "client"])
def test_a_stop_waits_for_running_requests(make_config, serving, how):
    async def scenario() -> None:
        async with serving(make_config()) as service:
            running = asyncio.create_task(service.complete(100))
            await service.until(lambda status: status["requests"]["tokens"])
            if how == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
                stopped = service.task
            else:
                stopped = asyncio.create_task(stop_run(service.info.run_dir, 10.0))
            await service.until(lambda status: status["state"] == "draining")
            refused = await service.complete(1)
            assert refused.status_code == 503
            answer = await running
            assert answer.json()["usage"]["completion_tokens"] == 100
            assert await stopped in (0, True)
            await service.task

    asyncio.run(scenario())


def test_a_second_signal_does_not_wait(make_config, serving):
    async def scenario() -> None:
        async with serving(make_config(cluster={"drain_timeout_s": 1000})) as service:
            running = asyncio.create_task(service.complete(400))
            await service.until(lambda status: status["requests"]["tokens"])
            service.stop.set()
            await service.until(lambda status: status["state"] == "draining")
            os.kill(os.getpid(), signal.SIGINT)
            answer = await running
            assert answer.status_code == 503
            assert "stopped before" in answer.json()["error"]["message"]
            assert await asyncio.wait_for(service.task, 20) == 0

    asyncio.run(scenario())


def test_work_begins_when_everything_serves_and_ends_the_run(make_config, fake_workers):
    seen: list[str] = []

    async def work(info) -> None:
        seen.append((await query_status(info.run_dir))["state"])

    async def scenario() -> int:
        config, stop = make_config(), asyncio.Event()
        return await run_service(
            config, on_ready=lambda info: seen.append("ready"), stop=stop, work=work
        )

    assert asyncio.run(scenario()) == 0
    assert seen == ["ready", "serving"]


def test_an_error_of_the_work_comes_out_after_the_run_has_ended(make_config, fake_workers):
    infos = []

    async def work(info) -> None:
        infos.append(info)
        raise ModelError("not this one")

    async def scenario() -> None:
        await run_service(make_config(), on_ready=print, stop=asyncio.Event(), work=work)

    with pytest.raises(ModelError, match="not this one"):
        asyncio.run(scenario())
    state = replay(e.event for e in read_journal(infos[0].run_dir / "journal.jsonl"))
    assert state.phase is RunPhase.ENDED


def start(config, stop: asyncio.Event | None = None) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(50):
            await run_service(config, on_ready=print, stop=stop or asyncio.Event())

    asyncio.run(scenario())


def test_a_worker_that_dies_at_once_fails_the_start_with_its_last_words(
    make_config, fake_workers, runtime_root
):
    fake_workers("crash=ew1")
    config = make_config()
    with pytest.raises(ClusterError) as error:
        start(config)
    text = str(error.value)
    assert text.startswith("ew1 died during the start: exit status 9; the end of ")
    assert text.endswith("ew1.1.log:\n  | this worker has a bad day")
    assert not list(runtime_root.glob("tarragon-*"))
    (run_dir,) = Path(config.run.root).iterdir()
    status = asyncio.run(query_status(run_dir))
    assert status["state"] == "failed"
    assert "ew1 died during the start" in status["reason"]


def test_a_start_that_takes_too_long_says_how_far_each_worker_came(make_config, fake_workers):
    fake_workers("absent")
    cluster = {"start_timeout_s": 6, "drain_timeout_s": 1}
    with pytest.raises(ClusterError) as error:
        start(make_config(experts={"workers": 3}, cluster=cluster))
    text = str(error.value)
    assert text.startswith("not serving after 6 s: ")
    assert "ew0 (starting), ew1 (starting), ew2 (starting); nothing was written by ew0.1: " in text
    assert "began but were not ready to connect: ew1.1 (pid " in text
    assert "ready but never reached 127.0.0.1:" in text
    assert " (a firewall?): ew2.1 (pid " in text


def test_an_exception_while_loading_shows_its_traceback(make_config, fake_workers):
    fake_workers("crash-loading=ew0")
    with pytest.raises(ClusterError, match="(?s)ew0 died .*exit status 1.*no room for the experts"):
        start(make_config())


def test_workers_that_ignore_everything_are_killed(make_config, fake_workers, monkeypatch):
    fake_workers("deaf=aw0")

    async def work(info) -> None:
        pids.extend(w["pid"] for w in (await query_status(info.run_dir))["workers"])

    pids: list[int] = []

    async def scenario() -> int:
        return await run_service(make_config(), on_ready=print, stop=asyncio.Event(), work=work)

    from tarragon_hpc.cluster import assemble

    real = assemble.Policy
    monkeypatch.setattr(assemble, "Policy", lambda **kw: real(**kw, stop_grace_s=0.2))
    assert asyncio.run(scenario()) == 0
    assert len(pids) == 4
    assert all(map(gone, pids))


def test_a_stop_during_the_start_is_obeyed(make_config, fake_workers):
    fake_workers("sleepless=ew0")  # the start would never come to an end
    stop = asyncio.Event()

    async def scenario() -> int:
        task = asyncio.create_task(run_service(make_config(), on_ready=print, stop=stop))
        await asyncio.sleep(1)
        stop.set()
        return await asyncio.wait_for(task, 30)

    assert asyncio.run(scenario()) == 0


def test_mistakes_are_found_before_anything_is_made(make_config, fake_workers, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"gateway.port: {port}"):
            start(make_config(gateway={"port": port}))
    with pytest.raises(ConfigError, match="experts.workers: 9: more EWs"):
        start(make_config(experts={"workers": 9}))
    with pytest.raises(ModelError, match="nowhere"):
        start(make_config(model={"path": str(tmp_path / "nowhere")}))
    assert not (tmp_path / "runs").exists()


def test_the_run_directory_tells_where_the_head_listens(make_config, serving):
    async def scenario() -> None:
        async with serving(make_config()) as service:
            record = read_head(service.info.run_dir)
            assert record.pid == os.getpid()
            assert record.endpoint == service.info.endpoint
            assert not record.endpoint.endswith(":0/v1")
            assert (service.info.run_dir / "secret").stat().st_mode & 0o777 == 0o600

    asyncio.run(scenario())
