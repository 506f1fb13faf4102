"""`tarragon bench`: run a benchmark, print its table, keep its numbers."""

from __future__ import annotations

import contextlib
import importlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarragon_hpc.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator


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
    _with_model("steady", "bench", target, model, options)


def overhead(target: Path | None, model: Path | None, **options: Any) -> None:
    """The price of resilience; without a model it makes the bench preset's for itself."""
    _with_model("overhead", "bench", target, model, options)


def failover(target: Path | None, model: Path | None, **options: Any) -> None:
    """The failover benchmark; without a model it makes a tiny one for itself."""
    _with_model("failover", "tiny", target, model, options)


def _with_model(
    name: str, preset: str, target: Path | None, model: Path | None, options: dict[str, Any]
) -> None:
    if model is not None:
        bench(name, target, model=str(model), **options)
        return
    with _made(preset) as made:
        bench(name, target, model=made, **options)


@contextlib.contextmanager
def _made(preset: str) -> Iterator[str]:
    """A checkpoint for the time of a benchmark."""
    from tarragon_hpc.models.tiny import write_tiny

    with tempfile.TemporaryDirectory(prefix="tarragon-bench-") as scratch:
        yield str(write_tiny("mixtral", Path(scratch) / preset, preset=preset))
