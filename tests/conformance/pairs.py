"""Two ends of a channel in one process, and what the tests do with them."""

from __future__ import annotations

import time

from tarragon_hpc.transport.base import Geometry

SMALL = Geometry(4, 256, 256)
SOON = 20.0  # seconds: longer than anything here takes, on any machine


class Pair:
    """A client and a server in this process, joined by channels."""

    def __init__(self, world, geometry=SMALL):
        self.world = world
        self.geometry = geometry
        self.server_bell, self.client_bell = world.bell(), world.bell()
        self.listener = world.listener(self.server_bell)
        self.address = world.reach("ew0", self.listener.address())
        self.client, self.server = self.join()

    def join(self, worker="aw0", incarnation=1, bell=None):
        connector = self.world.connector(bell or self.client_bell, worker, incarnation)
        client = connector.connect("ew0", 1, self.address, self.geometry)
        server = until(self.server_bell, lambda: first(self.listener.accepted()))
        return self.world.made(client), self.world.made(server)

    def take(self):
        """The next request at the server."""
        return until(self.server_bell, self.server.poll)

    def got(self, slot):
        """The reply in a slot of the client."""
        return until(self.client_bell, lambda: self.client.reply(slot))

    def settle(self, owed=0):
        """Wait until the client is owed no more than so many replies."""
        until(self.client_bell, lambda: self.client.owed() <= owed)


def first(items):
    return items[0] if items else None


def until(bell, condition, seconds=SOON):
    """The condition's value once it is not None or False, looking again whenever the bell rings."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        seen = bell.value()
        value = condition()
        if value is not None and value is not False:
            return value
        bell.wait(seen, end - time.monotonic())
    raise AssertionError("it did not happen")


def ask(client, data):
    slot = client.acquire()
    assert slot is not None, client
    client.request(slot)[: len(data)] = data
    client.post(slot, len(data))
    return slot


def answer(server, request, data):
    server.reply(request.slot)[: len(data)] = data
    server.send(request.slot, len(data))
