"""A role without weight, as a program and as what a fork server forks; its name says which it is.

Environment: PRELOAD, LIGHT: code to run as the imports, and as the worker.
"""

from __future__ import annotations

import os
import sys
import types

from tarragon_hpc.cluster import entry, forkserver


def run(name):
    exec(os.environ.get(name, ""), {})


def main(context):
    run("LIGHT")
    return 0


if __name__ == "__main__":
    for role in ("attention", "expert"):
        worker = types.ModuleType(f"tarragon_hpc.{role}.worker")
        worker.main = main
        preload = types.ModuleType(f"tarragon_hpc.{role}.preload")
        preload.preload = lambda: run("PRELOAD")
        sys.modules |= {module.__name__: module for module in (worker, preload)}
    if "--role" in sys.argv:
        forkserver.main()
    entry.leave(entry.main())
