"""No collective crosses a worker, and no MPI: watched in a running service."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys

import pytest

from tarragon_hpc.cluster.rendezvous import JOURNAL, read_head
from tarragon_hpc.orchestrator.events import WorkerRegistered
from tarragon_hpc.orchestrator.journal import read_journal
from tests.e2e.crowd import Crowd, start
from tests.e2e.sockets import collective_libraries, open_sockets, ranks, strangers

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

GLOO = """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo", init_method=sys.argv[1], rank=int(sys.argv[2]), world_size=2)
dist.all_reduce(torch.ones(1))
print("joined", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module", autouse=True)
def ss():
    assert shutil.which("ss"), "this test needs ss (apt-get install iproute2)"


def doors(run_dir):
    """Where the head and the workers say that they listen."""
    record = read_head(run_dir)
    found = {f"{record.control_host}:{record.control_port}"}
    for entry in read_journal(run_dir / JOURNAL):
        if isinstance(entry.event, WorkerRegistered):
            address = entry.event.address
            for key, value in address.items():
                prefix, _, field = key.rpartition(".")
                if field == "path":
                    found.add(value.rpartition("/")[2])
                elif field == "port":
                    host = address[f"{prefix}.host" if prefix else "host"]
                    found.add(f"[{host}]:{value}" if ":" in host else f"{host}:{value}")
    return found


def test_workers_are_connected_to_the_head_and_their_peers_only(tiny_models, tmp_path):
    assert not ranks(os.getpid()), "what this test looks for would be inherited"
    context, vocab = start(
        tiny_models,
        tmp_path,
        "mixtral",
        attention={"workers": 2},
        experts={"workers": 2, "shadows": 1},
        checkpoint={"stores": 1, "memory": "64MiB"},
    )
    with context as service:
        people = Crowd(service, vocab, lengths=[20] * 4, new_tokens=24)
        with people.busy():
            people.until(lambda s: s["requests"]["running"] >= 2)
            workers = {w["id"]: w["pid"] for w in people.status()["workers"]}
            sockets = open_sockets()
        assert set(workers) == {"aw0", "aw1", "ew0", "ew1", "cs0"}
        head = service.process.pid
        # The watch sees what there is to see: every worker, and its way to the head.
        control = f"{read_head(service.run_dir).control_port}"
        for name, pid in workers.items():
            mine = [s for s in sockets if pid in s.pids]
            assert any(s.kind == "tcp" and s.peer.endswith(f":{control}") for s in mine), name
            assert len(mine) >= 3, name
        wrong = strangers(sockets, workers, head, doors(service.run_dir))
        assert not wrong, "\n".join(wrong)
        for name, pid in workers.items():
            assert collective_libraries(pid) == set(), name
            assert ranks(pid) == [], name


@contextlib.contextmanager
def gloo_pair():
    """Two processes in one process group of torch.distributed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        method = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        pair = []
        for rank in range(2):
            command = [sys.executable, "-c", GLOO, method, str(rank)]
            env = {**os.environ, "RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "2"}
            process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            pair.append(process)
        assert [process.stdout.readline() for process in pair] == ["joined\n"] * 2
        yield {f"aw{rank}": process.pid for rank, process in enumerate(pair)}


def test_a_process_group_across_workers_would_be_seen():
    with gloo_pair() as pair:
        wrong = strangers(open_sockets(), pair, os.getpid(), set())
        assert [ranks(pid) for pid in pair.values()] == [
            [f"RANK={rank}", "OMPI_COMM_WORLD_SIZE=2"] for rank in range(2)
        ]
    for name in pair:
        assert any(line.startswith(f"{name}: tcp ESTAB") for line in wrong), wrong
    assert any(" LISTEN " in line for line in wrong), wrong


def test_a_library_of_mpi_would_be_seen(tmp_path):
    """Something mapped under the name of one."""
    library = tmp_path / "libmpi.so.40"
    library.write_bytes(bytes(4096))
    script = (
        "import mmap, sys; f = open(sys.argv[1]); m = mmap.mmap(f.fileno(), 0, prot=1);"
        "print(flush=True); input()"
    )
    command = [sys.executable, "-c", script, str(library)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert collective_libraries(process.pid) == {str(library)}
        process.kill()
