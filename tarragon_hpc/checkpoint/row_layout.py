"""How the rows of some tokens lie in memory: layer by layer, one token after another."""

from __future__ import annotations

from itertools import accumulate, groupby
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Span(NamedTuple):
    """Neighbouring layers first … stop-1 whose rows all have `row_bytes` bytes."""

    first: int
    stop: int
    row_bytes: int


class RowLayout:
    """Bytes of a token's row in each layer.

    token_bytes: of one token in all layers; before[l]: of one token in the layers below l
    """

    def __init__(self, row_bytes: Sequence[int]) -> None:
        if not row_bytes or min(row_bytes) < 1:
            raise ValueError(f"row_bytes: {list(row_bytes)}: one positive number per layer")
        self.row_bytes = tuple(row_bytes)
        self.layers = len(self.row_bytes)
        self.before = (0, *accumulate(self.row_bytes))
        self.token_bytes = self.before[-1]
        self._spans: list[Span] = []
        for size, layers in groupby(range(self.layers), self.row_bytes.__getitem__):
            members = list(layers)
            self._spans.append(Span(members[0], members[-1] + 1, size))

    def __repr__(self) -> str:
        return f"RowLayout({self.layers} layers, {self.token_bytes} bytes per token)"

    def spans(self, first: int, layers: int) -> Iterator[Span]:
        """The layers first … first+layers-1, those with rows of the same size together."""
        stop = first + layers
        for span in self._spans:
            if span.first < stop and span.stop > first:
                yield Span(max(first, span.first), min(stop, span.stop), span.row_bytes)
