"""The `ssh` line that leads to a gateway from a machine that is not on its network. Pure."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}


def tunnel(endpoint: str, node: str, login: str, *, here: bool = False) -> str:
    """`ssh -N -L …`, which makes the gateway's port one of the machine that runs it.

    endpoint: the gateway's URL. node: where the head runs. login: `user@host` of a machine that
    reaches it, this one. here: the head runs on this very machine. A gateway that listens on the
    loopback of its node is reached through a login to that node.
    """
    url = urlsplit(endpoint)
    host = url.hostname or ""
    port = url.port or _DEFAULT_PORTS.get(url.scheme, 0)
    if is_loopback(host):
        user, at, _ = login.rpartition("@")
        way = login if here else f"-J {login} {user}{at}{node}"
    else:
        way = login
    name = f"[{host}]" if ":" in host else host
    return f"ssh -N -L {port}:{name}:{port} {way}"


def is_loopback(host: str) -> bool:
    """Whether only processes of the same machine can connect to it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
