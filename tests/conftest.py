"""Fixtures that more than one part's tests use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tarragon_hpc import native

if TYPE_CHECKING:
    from pathlib import Path

    from tarragon_hpc.models.spec import Family


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `native` are skipped, with the reason, where the module was not compiled."""
    if native.reason is None:
        return
    for item in items:
        if item.get_closest_marker("native"):
            item.add_marker(pytest.mark.skip(reason=native.reason))
