"""Ports that an engine opens and nobody needs are closed."""

from __future__ import annotations

import os
import socket

import pytest

from tarragon_hpc.attention.deaf import deaf, listeners


def test_who_begins_to_listen_meanwhile_stops_and_others_go_on():
    with socket.create_server(("127.0.0.1", 0)) as ours, socket.socket(socket.AF_UNIX) as unix:
        unix.bind("")
        unix.listen()
        with deaf():
            theirs = socket.create_server(("127.0.0.1", 0))
            where = theirs.getsockname()
            socket.create_connection(where).close()
        assert listeners() & {ours.fileno(), theirs.fileno(), unix.fileno()} == {ours.fileno()}
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(where)
        socket.create_connection(ours.getsockname()).close()
        # Its owner can still close it, and closes nothing else.
        assert not os.get_inheritable(theirs.fileno())
        os.close(theirs.detach())


def test_process_groups_of_one_work_without(tmp_path):
    dist = pytest.importorskip("torch.distributed")
    torch = pytest.importorskip("torch")
    with deaf():
        method = f"file://{tmp_path / 'store'}"
        dist.init_process_group("gloo", init_method=method, rank=0, world_size=1)
        group = dist.new_group([0], backend="gloo")
        assert len(listeners()) >= 2
    try:
        assert not listeners()
        ones = torch.ones(2)
        dist.all_reduce(ones, group=group)
        dist.barrier(group=group)
        assert ones.tolist() == [1, 1]
    finally:
        dist.destroy_process_group()
