"""What a site needs, in a file of its own: any keys of a configuration, read before the user's.

`cluster.slurm.site` (or --site) is the file's path, or its name in one of these folders:

    $TARRAGON_SITES
    ~/.config/tarragon/sites
    slurm/sites              of the checkout this package is in
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import tarragon_hpc
from tarragon_hpc.errors import ConfigError

KEY = "cluster.slurm.site"

_SUFFIX = ".yaml"
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def folders() -> list[tuple[str, Path]]:
    """Where sites are looked for by name: how the folder is called, and where it is."""
    found = []
    if chosen := os.environ.get("TARRAGON_SITES"):
        found.append(("$TARRAGON_SITES", Path(chosen).expanduser()))
    found.append(("~/.config/tarragon/sites", Path("~/.config/tarragon/sites").expanduser()))
    ours = Path(tarragon_hpc.__file__).parents[1] / "slurm" / "sites"
    if ours.is_dir():
        found.append((str(ours), ours))
    return found


def find_site(name: str) -> Path:
    """The file of a site. Raises ConfigError with what was looked for, and where."""
    if "/" in name or name.endswith((_SUFFIX, ".yml")):
        path = Path(name).expanduser()
        if path.is_file():
            return path
        raise ConfigError(KEY, f"{name!r}: there is no such file")
    places = folders()
    for _, folder in places:
        if (path := folder / f"{name}{_SUFFIX}").is_file():
            return path
    known = sorted({p.stem for _, folder in places for p in folder.glob(f"*{_SUFFIX}")})
    there = f"; there are: {', '.join(known)}" if known else ""
    where = ", ".join(called for called, _ in places)
    raise ConfigError(KEY, f"{name!r}: no file {name}{_SUFFIX} in {where}{there}")


def expand(site: dict[str, Any], name: str) -> dict[str, Any]:
    """A site's data with the variables of the environment in run.root replaced by their values.

    Raises ConfigError, with the file's name, for one that is not set.
    """
    run = site.get("run")
    if not isinstance(run, dict) or not isinstance(root := run.get("root"), str):
        return site

    def value(match: re.Match[str]) -> str:
        variable = match[1] or match[2]
        try:
            return os.environ[variable]
        except KeyError:
            raise ConfigError(
                f"{name}: run.root", f"{root!r}: ${variable} is not set here"
            ) from None

    return {**site, "run": {**run, "root": _VARIABLE.sub(value, root)}}
