"""Another user of the node, who tries things: `stranger.py UID`, a JSON list of attempts on stdin,
[[what, argument, …], …]; answers a list with how each ended: an errno's name, or what was got.

It is started by root and becomes that user before it does anything; the standard library only, all
of it imported before, since the user may not read where Python lies.
"""

from __future__ import annotations

import codecs
import ctypes
import errno
import hmac
import json
import os
import resource
import signal
import socket
import sys
import urllib.error
import urllib.request

WEB = urllib.request.build_opener(urllib.request.ProxyHandler({}))
libc = ctypes.CDLL(None, use_errno=True)
MAGIC, HELLO, CHALLENGE = b"TARRAGN1", 40, 64
PTRACE_SEIZE, PIDFD_GETFD = 0x4206, 438


def checked(result):
    """Of a system call."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def read(path):
    with open(path, "rb") as file:
        return file.read(1 << 20).decode("utf-8", "replace")


def entries(path):
    return " ".join(sorted(os.listdir(path)))


def write(path):
    with open(path, "w"):
        return "written"


def memory(pid):
    """The first bytes of whatever it has mapped."""
    start = int(read(f"/proc/{pid}/maps").split("-")[0], 16)
    with open(f"/proc/{pid}/mem", "rb") as file:
        file.seek(start)
        return str(len(file.read(16)))


def memory_call(pid):
    """process_vm_readv(2)."""
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    checked(libc.process_vm_readv(pid, vector, 1, vector, 1, 0))
    return "read"


def trace(pid):
    checked(libc.ptrace(PTRACE_SEIZE, pid, None, None))
    return "traced"


def descriptor(pid):
    """Take one of its open files, such as a shared memory."""
    pidfd = os.pidfd_open(pid)
    return str(checked(libc.syscall(PIDFD_GETFD, pidfd, 0, 0)))


def kill(pid, number):
    os.kill(pid, number)
    return "sent"


def kill_by_fd(pid):
    signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL)
    return "sent"


def slow(pid):
    os.sched_setaffinity(pid, {min(os.sched_getaffinity(0))})
    return "bound"


def strangle(pid):
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, 3))
    return "limited"


def unix(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
    return "connected"


def challenge(host, port, purpose, secret, payload):
    """The handshake with a guessed secret (hex), and then a payload all the same."""
    with socket.create_connection((host, port), timeout=20) as sock:
        mine = os.urandom(32)
        sock.sendall(MAGIC + mine)
        theirs = b""
        while len(theirs) < CHALLENGE:
            piece = sock.recv(CHALLENGE - len(theirs))
            if not piece:
                return "closed"
            theirs += piece
        text = b"client" + len(purpose).to_bytes(2, "big") + purpose.encode() + mine + theirs[:32]
        proof = hmac.digest(bytes.fromhex(secret), text, "sha256")
        try:
            sock.sendall(proof + bytes.fromhex(payload))
            return "closed" if sock.recv(4096) == b"" else "let in"
        except ConnectionError:
            return "closed"


def garbage(host, port, payload):
    with socket.create_connection((host, port), timeout=20) as sock:
        try:
            sock.sendall(bytes.fromhex(payload))
            return "closed" if sock.recv(4096) == b"" else "answered"
        except ConnectionError:
            return "closed"


def http(url, key, body):
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, body.encode() if body else None, headers)
    try:
        with WEB.open(request, timeout=20) as answer:
            return f"{answer.status} {answer.read().decode()}"
    except urllib.error.HTTPError as error:
        return str(error.code)


def user():
    return " ".join(map(str, {*os.getresuid(), *os.getresgid(), *os.getgroups()}))


ATTEMPTS = {
    f.__name__: f
    for f in (
        read, entries, write, memory, memory_call, trace, descriptor, kill, kill_by_fd, slow,
        strangle, unix, challenge, garbage, http, user,
    )
}  # fmt: skip


def attempt(what, *arguments):
    try:
        return ATTEMPTS[what](*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, repr(error))


def main():
    for name in ("ascii", "idna", "latin-1", "utf-8"):
        codecs.lookup(name)
    uid = int(sys.argv[1])
    os.chdir("/")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    print(json.dumps([attempt(*each) for each in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
