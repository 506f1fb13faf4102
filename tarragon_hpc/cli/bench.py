"""`tarragon bench`: run a benchmark, print its table, keep its numbers."""

from __future__ import annotations

import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

from tarragon_hpc.errors import UserError


def bench(name: str, target: Path | None, **options: Any) -> None:
    """Call `run` of tarragon_hpc/bench/NAME.py with the options that were given.

    `run` prints the table and returns a dict with a "summary", which goes to `target` as JSON.
    """
    if target is not None and not target.absolute().parent.is_dir():
        raise UserError(f"--json {target}: the folder does not exist")
    module = importlib.import_module(f"tarragon_hpc.bench.{name}")
    given = {key: value for key, value in options.items() if value is not None}
    result: dict[str, Any] = module.run(**given)
    if target is not None:
        target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def steady(target: Path | None, model: Path | None, **options: Any) -> None:
    """The steady-state benchmark; without a model it makes the bench preset's for itself."""
    if model is not None:
        bench("steady", target, model=str(model), **options)
        return
    from tarragon_hpc.models.tiny import write_tiny

    with tempfile.TemporaryDirectory(prefix="tarragon-bench-") as scratch:
        made = write_tiny("mixtral", Path(scratch) / "bench", preset="bench")
        bench("steady", target, model=str(made), **options)
