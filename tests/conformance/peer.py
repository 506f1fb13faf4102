"""The other side of a conformance test: a worker that serves, or one that asks.

As a process (`main`): `KIND serve DIRECTORY MODE INCARNATION` tells the address it listens at;
`KIND ask DIRECTORY ADDRESS GEOMETRY` posts one request and tells `posted`. Both then run until
killed, or until they have left.
"""

from __future__ import annotations

SECRET = b"s" * 32


def reply_to(data):
    """What a serving peer answers: the bytes in reverse."""
    return bytes(data)[::-1]


def serve(listener, bell, mode, running=lambda: True):
    """Answer all requests: `echo` all, `once` only the first of each channel, `mute` none; `leave`
    at the first, without an answer."""
    channels = {}
    left = False
    while running() and not left:
        seen = bell.value()
        for channel in listener.accepted():
            channels[channel] = 0
        for channel in [*channels]:
            while (request := channel.poll()) is not None:
                channels[channel] += 1
                left = mode == "leave"
                if left or mode == "mute" or (mode == "once" and channels[channel] > 1):
                    continue
                answer = reply_to(request.data)
                channel.reply(request.slot)[: len(answer)] = answer
                channel.send(request.slot, len(answer))
            if channel.lost is not None:
                channels.pop(channel)
                channel.close()
        bell.wait(seen, 0.2)
    for channel in channels:
        channel.close()
    listener.close()


def ask(connector, address, geometry):
    """Connect to ew0 and post `hello`."""
    channel = connector.connect("ew0", 1, address, geometry)
    slot = channel.acquire()
    channel.request(slot)[:5] = b"hello"
    channel.post(slot, 5)
    return channel


def main(lines, kind, what, directory, *args):
    """The whole life of a process; `lines`: a connection to the test."""
    from tests.conformance.worlds import WORLDS

    world = WORLDS[kind](directory)
    bell = world.bell()
    if what == "serve":
        mode, incarnation = args
        listener = world.listener(bell, incarnation=incarnation)
        lines.send(listener.address())
        serve(listener, bell, mode)
    else:
        address, geometry = args
        channel = ask(world.connector(bell, "aw9"), address, geometry)
        lines.send("posted")
        while channel.lost is None:
            bell.wait(bell.value(), 1.0)
