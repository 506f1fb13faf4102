"""A worker's way into a run: waits, takes its place once, and says what is in the way."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.cluster import joining, node
from tarragon_hpc.cluster.directory import Directory
from tarragon_hpc.cluster.joining import claim, find_head, publish
from tarragon_hpc.cluster.records import HeadRecord, WorkerRecord, decode
from tarragon_hpc.cluster.rendezvous import create_run, read_head, write_head
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import Claimed, ClusterError, ConfigError
from tarragon_hpc.ids import Incarnation
from tarragon_hpc.transport.interfaces import boot_id

if TYPE_CHECKING:
    from pathlib import Path

EW0 = Incarnation("ew0", 1)
HEAD = HeadRecord("r", 1, "node1", "127.0.0.1", 4000, "", "/nowhere")


def test_a_head_that_comes_later_is_waited_for_with_few_looks(tmp_path: Path):
    new_run = create_run(load_config({"model": {"path": "m"}}), tmp_path / "run")
    timer = threading.Timer(1.0, write_head, (new_run, HEAD))
    timer.start()
    run = Directory(new_run)
    found = find_head(run)
    timer.join()
    assert found.head == read_head(new_run)
    assert found.nonce == found.head.nonce
    assert found.config.model.path == "m"
    assert found.secret.hex() == (new_run / "secret").read_text()
    assert 2 <= run.count["scan"] < 20
    assert run.count["read"] == 3


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: None, "no head has written where it listens"),
        (lambda path: (path / "head.1.json").write_bytes(b""), "head.1.json is empty"),
        (lambda path: shutil.rmtree(path), "No such file or directory"),
        (lambda path: (path / "config.yaml").unlink(), "no head has written where it listens"),
    ],
)
def test_the_wait_ends_on_time_with_what_was_seen(new_run: Path, spoil, why, monkeypatch):
    short = load_config({"model": {"path": "m"}, "cluster": {"start_timeout_s": 0.5}}).cluster
    monkeypatch.setattr(joining, "ClusterConfig", lambda: short)  # until there is a configuration
    run = Directory(new_run)
    spoil(new_run)
    began = time.monotonic()
    with pytest.raises(ClusterError, match=rf"^no head within 0.5 s: {new_run}: {why}$"):
        find_head(run)
    assert 0.45 < time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        (b"00" * 32, 0o640, "holds a secret and must have mode 0600"),
        (b"00" * 32, 0o604, "holds a secret and must have mode 0600"),
        (b"no secret", 0o600, "does not hold a secret"),
        (b"\xff\xfe", 0o600, "does not hold a secret"),
        (None, 0, "No such file or directory"),
    ],
)
def test_a_bad_secret_is_one_error_at_once(run_with_head: Path, content, mode, why):
    secret = run_with_head / "secret"
    secret.unlink()
    if content is not None:
        secret.write_bytes(content)
        secret.chmod(mode)
    with pytest.raises(ConfigError, match=f"^{secret}: {why}$"):
        find_head(Directory(run_with_head))


def test_a_place_is_taken_once_and_its_holder_is_named(run_with_head: Path):
    run = Directory(run_with_head)
    claim(run, EW0)
    claim(run, Incarnation("ew0", 2))
    with pytest.raises(
        Claimed, match=rf"ew0.1 is .* \(pid {os.getpid()} on {socket.gethostname()}"
    ):
        claim(run, EW0)


def test_its_holder_is_named_though_that_is_written_later(run_with_head: Path):
    name = run_with_head / "workers" / "ew0.1.claim"
    name.touch()
    writer = threading.Timer(0.1, name.write_text, ["pid 7 on h"])
    writer.start()
    with pytest.raises(Claimed, match=r"ew0.1 is .* \(pid 7 on h\)"):
        claim(Directory(run_with_head), EW0)
    writer.join()


def test_a_holder_that_could_not_write_who_it_is_has_its_place_all_the_same(run_with_head: Path):
    (run_with_head / "workers" / "ew0.1.claim").touch()
    with pytest.raises(Claimed, match=r"ew0.1 is .* \(unknown\)"):
        claim(Directory(run_with_head), EW0)


def test_of_two_processes_with_one_incarnation_one_ends_with_its_own_status(run_with_head: Path):
    """The other goes on, to a model that does not exist."""
    command = [sys.executable, "-m", "tarragon_hpc.cluster.entry", "--worker", "ew0"]
    command += ["--incarnation", "1", "--run-dir", str(run_with_head)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = sorted((process.communicate(timeout=60)[1], process.returncode) for process in both)
    assert sorted(status for _, status in ends) == [2, 73]
    (refused,) = [text for text, status in ends if status == 73]
    assert len(refused.splitlines()) == 1
    assert "ew0.1 is another process already (pid " in refused
    assert refused.endswith("no incarnation is used twice\n")


def test_a_record_says_who_and_where(run_with_head: Path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_STEP_ID", "3")
    publish(Directory(run_with_head), EW0, "abc", {"kind": "tcp"})
    path = run_with_head / "workers" / "ew0.1.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert decode(path.read_bytes(), WorkerRecord) == WorkerRecord(
        nonce="abc",
        role="ew",
        worker="ew0",
        incarnation=1,
        host=socket.gethostname(),
        boot_id=boot_id(),
        interfaces=node.interfaces(),
        address={"kind": "tcp"},
        pid=os.getpid(),
        step="77.3",
    )


def test_the_addresses_of_this_node_are_found():
    found = node.interfaces()
    assert found["lo"] == "127.0.0.1"
    for address in found.values():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind((address, 0))


def test_a_directory_that_vanishes_is_one_error(run_with_head: Path, caplog):
    run = Directory(run_with_head)
    find_head(run)
    shutil.rmtree(run_with_head)
    with pytest.raises(ClusterError, match=r"workers/ew0.1.claim: cannot be written: No such file"):
        claim(run, EW0)
    with caplog.at_level(logging.WARNING):
        publish(run, EW0, "abc", {})
    (line,) = caplog.messages
    assert line.endswith("workers/ew0.1.json: cannot be written: No such file or directory")


JOIN = """
import sys
from pathlib import Path
from tarragon_hpc.cluster.directory import Directory
from tarragon_hpc.cluster.joining import claim, find_head, publish
from tarragon_hpc.cluster.records import HeadRecord
from tarragon_hpc.cluster.rendezvous import create_run, write_head
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import TarragonError
from tarragon_hpc.ids import Incarnation
import logging, subprocess
logging.basicConfig(format="%(message)s", stream=sys.stdout)
path, how = Path(sys.argv[1]), sys.argv[2]
config = load_config({"model": {"path": "m"}})
head = HeadRecord("r", 1, "node1", "127.0.0.1", 4000, "", "/nowhere")
made = create_run(config, path / "run")
write_head(made, head)
if how == "full":
    try:
        (path / "ballast").write_bytes(bytes(1 << 20))
    except OSError:
        pass
else:
    subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
run, who = Directory(made), Incarnation("ew0", 1)
found = find_head(run)
for act in (
    lambda: claim(run, who),
    lambda: publish(run, who, found.nonce, {}),
    lambda: write_head(made, head),
    lambda: create_run(config, path / "next"),
):
    try:
        act()
        print("done")
    except TarragonError as error:
        print(type(error).__name__, error)
print(*sorted(p.name for p in made.iterdir() if p.name.startswith(".")), "end")
"""


def on_small_disk(path: Path, how: str) -> list[str]:
    """What happens on a filesystem of 64 KiB that is full or read-only, with a mount of our own."""
    script = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3" "$1" "$4"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(path)]
    done = subprocess.run(
        [*command, sys.executable, JOIN, how], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_full_disk_keeps_nobody_out(tmp_path: Path):
    """Who was there can be replaced; a new head or run is told what is wrong."""
    claimed, warning, published, head, run, left = on_small_disk(tmp_path, "full")
    assert (claimed, published, left) == ("done", "done", "end")
    full = "No space left on device"
    assert warning == f"{tmp_path}/run/workers/ew0.1.json: cannot be written: {full}"
    assert head == f"ClusterError {tmp_path}/run: cannot be written: {full}"
    assert run == f"ConfigError --run-dir: {tmp_path}/next: {full}"


def test_a_read_only_disk_is_one_error(tmp_path: Path):
    claimed, warning, published, head, run, left = on_small_disk(tmp_path, "read-only")
    denied = "Read-only file system"
    assert claimed.endswith(f"workers/ew0.1.claim: cannot be written: {denied}")
    assert warning.endswith(f"workers/ew0.1.json: cannot be written: {denied}")
    assert published == "done"
    assert head == f"ClusterError {tmp_path}/run: cannot be written: {denied}"
    assert run == f"ConfigError --run-dir: {tmp_path}/next: {denied}"
    assert left == "end"
