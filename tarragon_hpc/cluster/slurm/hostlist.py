"""Slurm's notation for many host names: `n[0-3,7],gpu-[01-04]-ib[1-2]`. Pure.

Whatever cannot be understood is an error: a made-up node, such as this host, would let every
process meet itself and wait for ever.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_MOST = 1 << 16
_NAME = re.compile(r"(?:[A-Za-z0-9_.-]+|\[[0-9,-]+\])+")
_PIECE = re.compile(r"\[([^\]]*)\]|([^\[]+)")
_RANGE = re.compile(r"([0-9]{1,12})(?:-([0-9]{1,12}))?")
_NUMBERED = re.compile(r"(.*?)([0-9]{1,12})")


def expand(text: str) -> tuple[str, ...]:
    """The names in order, each once. Raises ClusterError unless there is at least one."""
    names = [name for part in _split(text) for name in _expand_one(part, text)]
    if len(names) > _MOST:
        raise _wrong(text, f"{len(names)} names, at most {_MOST}")
    return tuple(dict.fromkeys(names))


def compress(names: Iterable[str]) -> str:
    """The names in one text that `expand` takes apart again; the order is kept in groups."""
    groups: dict[tuple[str, int], list[int]] = {}
    for name in dict.fromkeys(names):
        match = _NUMBERED.fullmatch(name)
        if match is None:
            groups[name, -1] = []
            continue
        stem, digits = match.groups()
        # n9 and n10 are one range, n09 and n10 are another: only padded numbers have a width.
        width = len(digits) if digits.startswith("0") and len(digits) > 1 else 0
        padded = (stem, len(digits))
        key = padded if width or padded in groups else (stem, 0)
        groups.setdefault(key, []).append(int(digits))
    return ",".join(_group(stem, width, sorted(found)) for (stem, width), found in groups.items())


def _group(stem: str, width: int, numbers: Sequence[int]) -> str:
    if not numbers:
        return stem
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] + 1 == number:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [f"{a:0{width}}" if a == b else f"{a:0{width}}-{b:0{width}}" for a, b in runs]
    if len(numbers) == 1:
        return stem + texts[0]
    return f"{stem}[{','.join(texts)}]"


def _split(text: str) -> list[str]:
    """At the commas outside brackets."""
    parts, depth, start = [], 0, 0
    for position, char in enumerate(text):
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [part.strip() for part in (*parts, text[start:])]


def _expand_one(part: str, text: str) -> list[str]:
    if _NAME.fullmatch(part) is None:
        raise _wrong(text, f"{part!r} is no name" if part else "a name is missing")
    pieces = []
    count = 1
    for match in _PIECE.finditer(part):
        pieces.append([match[2]] if match[1] is None else _numbers(match[1], text))
        count *= len(pieces[-1])
        if count > _MOST:
            raise _wrong(text, f"more than {_MOST} names")
    return ["".join(choice) for choice in itertools.product(*pieces)]


def _numbers(ranges: str, text: str) -> list[str]:
    found: list[str] = []
    for part in ranges.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise _wrong(text, f"[{ranges}]: expected numbers and ranges")
        first, last = match[1], match[2] or match[1]
        low, high = int(first), int(last)
        if high < low or high - low >= _MOST:
            raise _wrong(text, f"{part}: no range of 1 to {_MOST} numbers")
        found += [f"{number:0{len(first)}}" for number in range(low, high + 1)]
    return found


def _wrong(text: str, why: str) -> ClusterError:
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return ClusterError(f"node list {shown!r}: {why}")
