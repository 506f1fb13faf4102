"""What a StructureSpec may be. Pure; whether a grammar can be made of it, only an AW can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from tarragon_hpc.wire.common import StructureSpec

KINDS = ("json", "json_object", "regex", "grammar", "choice")
# Characters. A grammar takes up to seconds to make of so many, in every AW that has to.
MAX_TEXT = 1 << 17
# Objects and arrays within one another, as in vLLM: what converts schemas recurses.
MAX_NESTING = 64


def problem(structure: StructureSpec) -> str | None:
    """Why no engine may see this structure, to be put after the field's name; None if one may."""
    kind, text = structure.kind, structure.text
    if kind not in KINDS:
        return f"kind {kind[:80]!r} is not one of {', '.join(KINDS)}"
    if len(text) > MAX_TEXT:
        return f"has {len(text)} characters, more than the {MAX_TEXT} that are allowed"
    if "\x00" in text:
        return "must not contain a NUL character"
    if kind == "json":
        return _schema_problem(text)
    if kind == "choice":
        return _choice_problem(text)
    if kind == "grammar" and not text.strip():
        return "must not be empty"
    return None


def _schema_problem(text: str) -> str | None:
    schema = _decoded(text)
    if not isinstance(schema, dict):
        return "must be a JSON schema, which is a JSON object"
    if _nests_deeper(schema, MAX_NESTING):
        return f"is nested too deeply: at most {MAX_NESTING} levels are allowed"
    return None


def _choice_problem(text: str) -> str | None:
    choices = _decoded(text)
    if not isinstance(choices, list) or not choices:
        return "must be a list of at least one string"
    if not all(isinstance(choice, str) for choice in choices):
        return "must be a list of strings"
    if any("\x00" in choice for choice in choices):
        return "must not contain a NUL character"
    return None


def _decoded(text: str) -> Any:
    """None if it is no JSON, which is no schema and no list either."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return None


def _nests_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        inner = [v for part in level for v in (part.values() if type(part) is dict else part)]
        level = [v for v in inner if isinstance(v, dict | list)]
        if not level:
            return False
    return True
