"""Fixtures that more than one part's tests use."""

from __future__ import annotations

import importlib.util
import signal
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tarragon_hpc import native

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tarragon_hpc.models.spec import Family


def pytest_configure() -> None:
    """Undo what a shell and nohup do to background jobs: children would inherit ignored signals."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


_left_out: list[str] = []


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Remember what was asked to be left out."""
    _left_out.extend(item.nodeid for item in items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Beside what was skipped: what was left out on purpose."""
    if _left_out:
        files = sorted({name.partition("::")[0] for name in _left_out})
        terminalreporter.line(f"left out (-m): {len(_left_out)} tests of {', '.join(files)}")


class TinyModels(Protocol):
    """Directory of a tiny checkpoint, written once per session; `size` as in `write_tiny`."""

    def __call__(self, family: Family, **size: Any) -> Path: ...


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    from tarragon_hpc.models.tiny import write_tiny

    written: dict[tuple[Any, ...], Path] = {}

    def get(family: Family, **size: Any) -> Path:
        key = (family, *sorted(size.items()))
        if key not in written:
            written[key] = write_tiny(family, tmp_path_factory.mktemp(family), **size)
        return written[key]

    return get


def _no_engine() -> str | None:
    return None if importlib.util.find_spec("vllm") else "vllm is not installed"


def _no_gpu() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return None if torch.cuda.is_available() else "torch sees no CUDA device"


# Marker → why tests with it cannot run here, or None. Asked only if there are such tests.
_NEEDS: dict[str, Callable[[], str | None]] = {
    "native": lambda: native.reason,
    "vllm": _no_engine,
    "gpu": _no_gpu,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what needs something this machine lacks."""
    for marker, why_not in _NEEDS.items():
        needing = [item for item in items if item.get_closest_marker(marker)]
        reason = why_not() if needing else None
        if reason is not None:
            for item in needing:
                item.add_marker(pytest.mark.skip(reason=reason))
