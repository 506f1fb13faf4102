"""`tarragon bench`: run a benchmark, print its table, keep its numbers."""

from __future__ import annotations

import contextlib
import importlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarragon_hpc.config import parse_override
from tarragon_hpc.errors import ConfigError, TarragonError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


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
    if (why := broken(result)) is not None:
        raise TarragonError(f"bench {name}: {why}")


def broken(result: Mapping[str, Any]) -> str | None:
    """Why a measurement must not pass for a good one: what it measured was wrong, or too little."""
    failed, changed = (result["summary"].get(key) or 0 for key in ("failed", "changed"))
    if failed or changed:
        return f"{failed} streams failed and {changed} have other tokens than without failures"
    problem: str | None = result.get("problem")
    return problem


def steady(target: Path | None, model: Path | None, **options: Any) -> None:
    """The steady-state benchmark; without a model it makes the bench preset's for itself."""
    _with_model("steady", "bench", target, model, options)


def overhead(target: Path | None, model: Path | None, **options: Any) -> None:
    """The price of resilience; without a model it makes the bench preset's for itself."""
    _with_model("overhead", "bench", target, model, options)


def failover(target: Path | None, model: Path | None, **options: Any) -> None:
    """The failover benchmark; without a model it makes a tiny one for itself."""
    _with_model("failover", "tiny", target, model, options)


def checkpoint(target: Path | None, model: Path | None, **options: Any) -> None:
    """The price of checkpoints; without a model it makes the bench preset's for itself."""
    _with_model("checkpoint", "bench", target, model, options)


def restore(target: Path | None, model: Path | None, **options: Any) -> None:
    """The restoration benchmark; without a model it makes the bench preset's for itself."""
    _with_model("restore", "bench", target, model, options)


def read_overrides(texts: Iterable[str] | None) -> dict[str, Any] | None:
    """`a.b=c` … as sections; None of nothing. Raises ConfigError."""
    sections: dict[str, Any] = {}
    for text in texts or ():
        path, value = parse_override(text)
        node = sections
        for i, part in enumerate(path[:-1]):
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(".".join(path[: i + 1]), "is a value, not a section")
        node[path[-1]] = value
    return sections or None


def read_points(text: str | None) -> tuple[int, ...] | None:
    """`16,64`, each 1 or more; None of nothing. Raises UserError."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise UserError(f"--points {text}: expected numbers of tokens with commas, such as 16,64")
    return tuple(map(int, parts))


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
