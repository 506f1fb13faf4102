"""Where runs may be kept: a directory, also written as file:///path; no object store.

A rendezvous needs names that exactly one process can create. Of the filesystems that fsspec knows
only mounted directories have them, by `open("xb")`: its object stores look first and write then,
and `pipe_file(mode="create")` of its local one lets two writers win.
"""

from __future__ import annotations

import re
from pathlib import Path

from tarragon_hpc.errors import ConfigError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(://|::)(.*)", re.DOTALL)
_LOCAL = ("file", "local")
_ALLOWED = "allowed: a directory that all nodes mount, as a path or file:///path"


def local_path(text: str, key: str = "run.root") -> Path:
    """The absolute path of a directory from a path or URL. Raises ConfigError naming `key`."""
    match = _URL.fullmatch(text)
    if match is None:
        return Path(text).expanduser().absolute()
    # Imported for URLs only: it would cost every command a tenth of a second.
    from fsspec.registry import available_protocols

    protocol, separator, path = match.groups()
    if protocol not in available_protocols():
        raise ConfigError(key, f"{text!r}: fsspec knows no protocol {protocol!r}; {_ALLOWED}")
    if protocol not in _LOCAL or separator == "::":
        problem = f"{protocol} has no exclusive create that a run could rely on"
        raise ConfigError(key, f"{text!r}: {problem}; {_ALLOWED}")
    if not path.startswith("/"):
        raise ConfigError(key, f"{text!r}: names a host or a relative path; {_ALLOWED}")
    return Path(path)
