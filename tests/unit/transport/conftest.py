"""What the tests of more than one transport use."""

from __future__ import annotations

import pytest

from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.transport.tcp import TcpListener
from tests.unit.transport.tcp_ends import SECRET


@pytest.fixture
def bells():
    """Of a server and of a client."""
    made = [ProcessDoorbell(), ProcessDoorbell()]
    yield made
    for bell in made:
        bell.close()


@pytest.fixture
def tcp_listener(bells):
    made = TcpListener("127.0.0.1", "ew0", 1, SECRET, bells[0], max_channel_bytes=1 << 20)
    yield made
    made.close()
