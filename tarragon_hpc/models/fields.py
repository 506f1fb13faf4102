"""Typed access to a checkpoint's JSON files; every mistake in them becomes one line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tarragon_hpc.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError if it cannot be read or is not an object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except UnicodeDecodeError:
        raise ModelError(f"{path}: is not a UTF-8 text file") from None
    except json.JSONDecodeError as error:
        raise ModelError(f"{path}: is not valid JSON: {error.msg} (line {error.lineno})") from None
    except RecursionError:
        raise ModelError(f"{path}: is not valid JSON: nested too deeply") from None
    if not isinstance(data, dict):
        raise ModelError(f"{path}: must hold a JSON object, not a {type(data).__name__}")
    return data


class Fields:
    """The fields of one JSON object, checked as they are read.

    A field may go by several names (transformers renamed some over time): the first that is
    present and not null counts.
    """

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self.path = path
        self._data = data

    def raw(self, *names: str) -> Any:
        """The value as it is, or None."""
        for name in names:
            value = self._data.get(name)
            if value is not None:
                return value
        return None

    def integer(self, *names: str, least: int = 1, default: int | None = None) -> int:
        """A whole number of at least `least`; required unless there is a default."""
        value = self.raw(*names)
        if value is None:
            if default is None:
                raise self.wrong(names, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(names, f"is {value!r}; expected a whole number of at least {least}")
        return value

    def number(self, *names: str, default: float) -> float:
        """A number."""
        value = self.raw(*names)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(names, f"is {value!r}; expected a number")
        return float(value)

    def integers(self, *names: str) -> tuple[int, ...]:
        """A whole number, a list of them, or nothing: always a tuple."""
        value = self.raw(*names)
        items = [] if value is None else value if isinstance(value, list) else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in items):
            raise self.wrong(names, f"is {value!r}; expected whole numbers of at least 0")
        return tuple(items)

    def text(self, *names: str, default: str | None = None) -> str:
        """A string; required unless there is a default."""
        value = self.raw(*names)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value:
            problem = "is missing" if value is None else f"is {value!r}; expected a text"
            raise self.wrong(names, problem)
        return value

    def section(self, *names: str) -> Fields:
        """A nested object; empty if it is absent."""
        value = self.raw(*names)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(names, f"is {value!r}; expected an object")
        return Fields(self.path, value or {})

    def wrong(self, names: tuple[str, ...], problem: str) -> ModelError:
        """The error for a field."""
        return ModelError(f"{self.path}: {' or '.join(names)} {problem}")
