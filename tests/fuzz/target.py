"""What a fuzz target is: bytes in, and no error out but those that its parser documents."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

FAMILIES = ("control", "joins", "dispatches", "kv", "bodies", "files", "transports")


LONGEST_MESSAGE = 20_000


class Target(NamedTuple):
    """`run` raises whatever is a finding; `seeds`: good inputs, as our own encoders make them."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


class Family:
    """The targets of one module, by name."""

    def __init__(self) -> None:
        self.targets: dict[str, Target] = {}

    def add(
        self, seeds: Callable[[], list[bytes]], *allowed: type[Exception]
    ) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
        """Decorates a function of bytes, which may raise `allowed`."""

        def register(parse: Callable[[bytes], None]) -> Callable[[bytes], None]:
            def run(data: bytes) -> None:
                try:
                    parse(data)
                except allowed as error:
                    # Messages are for people and logs: they must be printable, and short.
                    message = str(error).encode(errors="backslashreplace")
                    if len(message) > LONGEST_MESSAGE:
                        raise ValueError(f"a message of {len(message)} bytes") from error

            self.targets[parse.__name__] = Target(parse.__name__, run, seeds)
            return parse

        return register


def all_targets() -> dict[str, Target]:
    """Every target of every family."""
    found: dict[str, Target] = {}
    for family in FAMILIES:
        found |= importlib.import_module(f"tests.fuzz.{family}").family.targets
    return found
