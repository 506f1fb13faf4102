"""The middle of a TCP link, in the test's hands."""

from __future__ import annotations

import contextlib
import queue
import select
import socket
import struct
import threading

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection (socket(7))
_MOST = 4 << 20  # bytes that wait in each direction


class Relay:
    """Passes bytes between whoever connects to `port` and a listener, until it is told not to."""

    def __init__(self, host, port):
        self._target = host, port
        self._passing = self._whole = self._open = True
        self._lines = []
        self._orders = queue.SimpleQueue()
        self._waker, self._woken = socket.socketpair()
        self._listener = socket.create_server((host, 0))
        self.port = self._listener.getsockname()[1]
        self._listener.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def cut(self):
        """Reset all connections, and those that are to come."""
        self._order(self._cut)

    def silence(self):
        """Take everything and pass nothing on."""
        self._order(lambda: setattr(self, "_passing", False))

    def heal(self):
        """Go on, with what was held back."""
        self._order(self._heal)

    def close(self):
        self._order(self._end)
        self._thread.join()
        for sock in (self._waker, self._woken, self._listener):
            sock.close()

    def _order(self, what):
        """Have the relay's thread do it: nobody else may close what it waits for."""
        done = threading.Event()
        self._orders.put((what, done))
        self._waker.send(b"!")
        done.wait()

    def _cut(self):
        self._whole = False
        for line in self._lines:
            line.reset()
        self._lines = []

    def _heal(self):
        self._whole = self._passing = True

    def _end(self):
        self._cut()
        self._open = False

    def _run(self):
        while self._open:
            poll = select.poll()
            poll.register(self._woken, select.POLLIN)
            if self._passing:
                poll.register(self._listener, select.POLLIN)
            for line in self._lines:
                for sock, events in line.interest(self._passing):
                    poll.register(sock, events)
            poll.poll()
            with contextlib.suppress(queue.Empty):
                while True:
                    what, done = self._orders.get_nowait()
                    self._woken.recv(1)
                    what()
                    done.set()
            if self._passing:
                self._accept()
            for line in self._lines:
                line.step(self._passing)
            self._lines = [line for line in self._lines if not line.over]

    def _accept(self):
        with contextlib.suppress(BlockingIOError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket()
                self._lines.append(_Line(near, far))
                if not self._whole or far.connect_ex(self._target):
                    self._lines.pop().reset()


class _Line:
    """Two connections, and what waits to be passed on, by where it came from."""

    def __init__(self, near, far):
        self.over = False
        self._across = {near: far, far: near}
        self._held = {near: bytearray(), far: bytearray()}
        self._ended = set()  # where nothing more comes from
        self._told = set()  # whose other end knows it

    def interest(self, passing):
        for sock, other in self._across.items():
            events = 0
            if sock not in self._ended and len(self._held[sock]) < _MOST:
                events |= select.POLLIN
            if passing and self._held[other]:
                events |= select.POLLOUT
            if events:
                yield sock, events

    def step(self, passing):
        try:
            for sock, other in self._across.items():
                self._step(sock, other, passing)
            if len(self._told) == 2:
                self._close()
        except OSError:
            self.reset()

    def _step(self, sock, other, passing):
        held = self._held[sock]
        if sock not in self._ended and len(held) < _MOST:
            with contextlib.suppress(BlockingIOError):
                data = sock.recv(1 << 16, socket.MSG_DONTWAIT)
                held += data
                if not data:
                    self._ended.add(sock)
        if passing and held:
            with contextlib.suppress(BlockingIOError):
                del held[: other.send(held, socket.MSG_DONTWAIT)]
        if passing and sock in self._ended - self._told and not held:
            self._told.add(sock)
            other.shutdown(socket.SHUT_WR)

    def reset(self):
        for sock in self._across:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close()

    def _close(self):
        self.over = True
        for sock in self._across:
            sock.close()
