"""The lines of the request log, and what they add up to. Pure: no files, no clock.

One JSON object per line, with its checksum at the end ("crc"), by "type":

    opened     a request as it came, the prompts and samplings of its sequences; in a log that was
               rewritten also what they had produced until then. It counts instead of all that was
               said of the request before, as a whole or (torn) not at all
    tokens     what one message of an AW added to its sequences (Item: positions, so that one that
               comes twice changes nothing)
    ended      a sequence ended otherwise than by its last token: at a stop string, or by an error
    forgotten  nobody can come back to this request any more

A request is known by the name of its first sequence, which is unique in the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias
from zlib import crc32

import msgspec

from tarragon_hpc.errors import Overloaded, RequestError, TarragonError, Unavailable
from tarragon_hpc.gateway.tokenlog import TokenLog, Verdict
from tarragon_hpc.wire.common import SamplingSpec, TokenDelta, TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Iterable

Kind: TypeAlias = Literal["completions", "chat"]

# JSON has no infinity; clients are told this value too.
_LEAST = -9999.0


class _Line(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    pass


class Item(msgspec.Struct, frozen=True, array_like=True):
    """What a sequence got at once, from position `index` on: the fields of a TokenDelta."""

    request: str
    index: int
    token_ids: list[int]
    finish: str | None = None
    stop_reason: int | None = None
    masked: int = 0
    logprobs: list[TokenLogprobs] | None = None


class Opened(_Line, frozen=True, tag="opened"):
    """A request. body: as received. id, created: as its client is told. holder: whose it is (a
    digest of the API key). names: what the holder may call it; key: its Idempotency-Key.

    There are as many sequences for each prompt; every one has a seed if it is sampled. items:
    what was produced until this was written.
    """

    id: str
    created: int
    kind: Kind
    body: msgspec.Raw
    holder: str
    names: list[str]
    prompts: list[list[int]]
    sequences: list[str]
    sampling: list[SamplingSpec]
    key: str | None = None
    items: list[Item] = []

    def prompt(self, sequence: int) -> list[int]:
        """The prompt of the sequence at this position."""
        return self.prompts[sequence * len(self.prompts) // len(self.sequences)]


class Produced(_Line, frozen=True, tag="tokens"):
    """What one message of an AW added."""

    items: list[Item]


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error that ended a sequence, so that it can be raised again."""

    message: str
    kind: Literal["request", "overloaded", "unavailable", "internal"]
    status: int = 400
    param: str | None = None
    code: str | None = None


class Ended(_Line, frozen=True, tag="ended", omit_defaults=True):
    """A sequence ended: by this problem, or (None) because its text came to a stop string."""

    request: str
    problem: Problem | None = None


class Forgotten(_Line, frozen=True, tag="forgotten"):
    """Of the request whose first sequence this is nothing is wanted any more."""

    request: str


Line: TypeAlias = Opened | Produced | Ended | Forgotten

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode
_SUM = b',"crc":"%08x"}'
_SUM_BYTES = len(_SUM % 0)


@dataclass(slots=True)
class Kept:
    """A request and what is known of its sequences, in their order. ended: by position."""

    opened: Opened
    logs: list[TokenLog]
    ended: dict[int, Ended] = field(default_factory=dict)

    @classmethod
    def new(cls, opened: Opened) -> Kept:
        """With nothing produced."""
        return cls(opened, [TokenLog(s.logprobs is not None) for s in opened.sampling])

    @property
    def name(self) -> str:
        """What the log calls it."""
        return self.opened.sequences[0]


def encode(line: Line) -> bytes:
    """A line with its end."""
    data = _encode(line)[:-1]
    return data + _SUM % crc32(data) + b"\n"


def decode(text: bytes) -> Line:
    """A line without its end. Raises ValueError: damage must not pass for another request."""
    data = text[:-_SUM_BYTES]
    if text[-_SUM_BYTES:] != _SUM % crc32(data):
        raise ValueError("its checksum does not fit")
    line: Line = _decode(data + b"}")
    return line


def item(delta: TokenDelta, had: int, log: TokenLog) -> Item:
    """What a log has beyond its first `had` tokens, all from this delta."""
    scores = _finite(log.logprobs[had:]) if log.with_logprobs else None
    new = log.token_ids[had:]
    return Item(delta.request, had, new, log.finish, log.stop_reason, delta.masked, scores)


def restated(kept: Kept) -> list[Line]:
    """The lines that say all that is known of a request."""
    names = zip(kept.opened.sequences, kept.logs, strict=True)
    items = [i for name, log in names for i in _items(name, log)]
    return [msgspec.structs.replace(kept.opened, items=items), *kept.ended.values()]


def record(error: TarragonError) -> Problem:
    """What is written down of an error."""
    match error:
        case RequestError():
            return Problem(str(error), "request", error.status, error.param, error.code)
        case Overloaded():
            return Problem(str(error), "overloaded")
        case Unavailable():
            return Problem(str(error), "unavailable")
        case _:
            return Problem(str(error), "internal")


def recall(problem: Problem) -> TarragonError:
    """The error that was written down."""
    match problem.kind:
        case "request":
            return RequestError(
                problem.message, param=problem.param, code=problem.code, status=problem.status
            )
        case "overloaded":
            return Overloaded(problem.message)
        case "unavailable":
            return Unavailable(problem.message)
        case "internal":
            return TarragonError(problem.message)


class Memory:
    """What the lines of one log after the other add up to: the requests still wanted.

    kept: by the name of the first sequence, the oldest first. Tokens that would leave a hole (a
    damaged line was before them) are left out: what is known of a sequence is a beginning of it.
    """

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}
        self._places: dict[str, tuple[Kept, int]] = {}
        self._named: set[str] = set()

    def __repr__(self) -> str:
        return f"Memory({len(self.kept)} requests)"

    def read(self, data: bytes) -> list[str]:
        """Take in a file; returns what is wrong with it. A last line without its end is dropped:
        what it says had not been told to anybody.
        """
        wrong = []
        for number, text in enumerate(data.split(b"\n")[:-1], start=1):
            try:
                line = decode(text)
            except ValueError as error:  # msgspec's errors are ValueErrors too
                wrong.append(f"line {number} is damaged and left out: {error}")
            else:
                if (problem := self._take(line)) is not None:
                    wrong.append(f"line {number}: {problem}")
        return wrong

    def _take(self, line: Line) -> str | None:
        match line:
            case Opened():
                return self._open(line)
            case Produced():
                return self._produce(line.items)
            case Ended():
                if (place := self._places.get(line.request)) is not None:
                    kept, position = place
                    kept.ended[position] = line
            case Forgotten():
                self._drop(line.request)
        return None

    def _open(self, line: Opened) -> str | None:
        count = len(line.sequences)
        if (
            not count
            or len(line.sampling) != count
            or not line.prompts
            or count % len(line.prompts)
        ):
            return f"{line.id}: has {count} sequences, which do not fit; left out"
        kept = Kept.new(msgspec.structs.replace(line, items=[]))
        self._drop(kept.name)
        self.kept[kept.name] = kept
        self._places |= {name: (kept, i) for i, name in enumerate(line.sequences)}
        return self._produce(line.items)

    def _produce(self, items: list[Item]) -> str | None:
        """What is wrong, once for a sequence."""
        wrong = {i.request: why for i in items if (why := self._add(i)) is not None}
        new = [wrong[name] for name in wrong.keys() - self._named]
        self._named |= wrong.keys()
        return "; ".join(sorted(new)) or None

    def _add(self, new: Item) -> str | None:
        place = self._places.get(new.request)
        if place is None:
            return f"tokens of {new.request}, which is not open, are left out"
        kept, position = place
        delta = TokenDelta(
            new.request, new.index, new.token_ids, new.logprobs, new.finish, new.stop_reason,
            new.masked,
        )  # fmt: skip
        verdict = kept.logs[position].append(delta)
        if verdict in (Verdict.NEW, Verdict.DUPLICATE):
            return None
        return (
            f"tokens of {new.request} do not fit ({verdict}) and are left out from {new.index} on"
        )

    def _drop(self, name: str) -> None:
        kept = self.kept.pop(name, None)
        for sequence in kept.opened.sequences if kept is not None else ():
            self._places.pop(sequence, None)


def merge(files: Iterable[tuple[str, bytes]]) -> tuple[list[Kept], list[str]]:
    """The requests still wanted after these files (name, content), and what is wrong with them."""
    memory = Memory()
    wrong = [f"{name}: {problem}" for name, data in files for problem in memory.read(data)]
    return list(memory.kept.values()), wrong


def _items(name: str, log: TokenLog) -> list[Item]:
    """Items that make up a log: cut where calls were masked, and before a finish that came alone.

    What is masked is told with the tokens that it came with: usage counts it there.
    """
    end, alone = len(log.token_ids), int(log.finish_alone)
    cuts = [(at, masked) for at, masked in log.masks if at < end + alone]
    last = sum(masked for at, masked in log.masks if at >= end + alone)
    items, start = [], 0
    for at, masked in cuts:
        scores = _finite(log.logprobs[start:at]) if log.with_logprobs else None
        items.append(Item(name, start, log.token_ids[start:at], None, None, masked, scores))
        start = at
    if alone and start < end:
        scores = _finite(log.logprobs[start:]) if log.with_logprobs else None
        items.append(Item(name, start, log.token_ids[start:], None, None, 0, scores))
        start = end
    if start < end or log.finish is not None:
        scores = _finite(log.logprobs[start:]) if log.with_logprobs else None
        rest = log.token_ids[start:]
        items.append(Item(name, start, rest, log.finish, log.stop_reason, last, scores))
    return items


def _finite(scores: list[TokenLogprobs]) -> list[TokenLogprobs]:
    """JSON would lose an infinity."""
    if all(map(math.isfinite, (value for entry in scores for value in entry.logprobs))):
        return scores
    return [
        TokenLogprobs(
            entry.token_ids,
            [value if math.isfinite(value) else _LEAST for value in entry.logprobs],
            entry.rank,
        )
        for entry in scores
    ]
