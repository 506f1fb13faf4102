"""The other side of a conformance test: a worker that serves, or one that asks.

As a script it is a process of its own over shm: `peer.py serve DIR MODE` prints the address it
listens at; `peer.py ask ADDRESS` posts one request and prints `posted`. Both then run until killed.
"""

from __future__ import annotations

import json
import sys

SECRET = b"s" * 32


def reply_to(data):
    """What a serving peer answers: the bytes in reverse."""
    return bytes(data)[::-1]


def serve(listener, bell, mode, running=lambda: True):
    """Answer all requests: `echo` all, `once` only the first of each channel, `mute` none."""
    channels = {}
    while running():
        seen = bell.value()
        for channel in listener.accepted():
            channels[channel] = 0
        for channel in [*channels]:
            while (request := channel.poll()) is not None:
                channels[channel] += 1
                if mode == "mute" or (mode == "once" and channels[channel] > 1):
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


def main(argv):
    from tarragon_hpc.transport.base import Geometry
    from tarragon_hpc.transport.bell import ProcessDoorbell
    from tarragon_hpc.transport.shm import ShmConnector, ShmListener

    bell = ProcessDoorbell()
    if argv[0] == "serve":
        listener = ShmListener(argv[1], "ew0", 1, SECRET, bell)
        print(json.dumps(listener.address()), flush=True)
        serve(listener, bell, argv[2])
    else:
        connector = ShmConnector("aw9", 1, SECRET, bell)
        channel = connector.connect("ew0", 1, json.loads(argv[1]), Geometry(2, 256, 256))
        slot = channel.acquire()
        channel.request(slot)[:5] = b"hello"
        channel.post(slot, 5)
        print("posted", flush=True)
        while channel.lost is None:
            bell.wait(bell.value(), 1.0)


if __name__ == "__main__":
    main(sys.argv[1:])
