"""The checkpoint's chat template: a conversation to the text of a prompt, in a Jinja sandbox.

The names a template may use are those that transformers gives it: messages, tools, documents,
add_generation_prompt, the special tokens, raise_exception, strftime_now, tojson, the loop controls
and the `generation` block (which marks the assistant's words for training, and prints them here).
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tarragon_hpc.errors import ModelError, RequestError
from tarragon_hpc.gateway.text import read_json, special_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jinja2.parser import Parser

_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class ChatTemplate:
    """A compiled template and the special tokens it refers to."""

    def __init__(self, source: str, tokens: dict[str, str]) -> None:
        """Raises jinja2.TemplateSyntaxError."""
        environment = _environment()
        self._tokens = tokens
        self._variables = meta.find_undeclared_variables(environment.parse(source))
        self._knows_developer = "'developer'" in source or '"developer"' in source
        self._template = environment.from_string(source)

    @classmethod
    def load(cls, directory: Path) -> ChatTemplate | None:
        """The template of a checkpoint; None if it has none. Raises ModelError if it is broken.

        chat_template.jinja comes before `chat_template` in tokenizer_config.json, which may hold
        several: then the one named default counts.
        """
        settings = read_json(directory / "tokenizer_config.json")
        path = directory / "chat_template.jinja"
        source: Any
        try:
            source = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            path = directory / "tokenizer_config.json"
            source = settings.get("chat_template")
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: {error}") from None
        if isinstance(source, list):
            named = {e.get("name"): e.get("template") for e in source if isinstance(e, dict)}
            source = named.get("default")
        if source is None:
            return None
        if not isinstance(source, str):
            raise ModelError(f"{path}: chat_template: must be text")
        try:
            return cls(source, special_tokens(settings))
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"{path}: chat template, line {error.lineno}: {error}") from None

    def uses(self, variable: str) -> bool:
        """Whether the template refers to a variable."""
        return variable in self._variables

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: dict[str, Any] | None = None,
    ) -> str:
        """The prompt. Raises RequestError if the template refuses the conversation."""
        extra = variables or {}
        taken = sorted(extra.keys() & _RESERVED)
        if taken:
            raise RequestError(
                f"chat_template_kwargs: {taken[0]!r} is set by the request's other fields",
                param="chat_template_kwargs",
            )
        if not self._knows_developer:
            messages = [
                {**m, "role": "system"} if m["role"] == "developer" else m for m in messages
            ]
        try:
            return self._template.render(
                self._tokens
                | extra
                | {
                    "messages": messages,
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise RequestError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from None


class _Generation(Extension):
    tags = {"generation"}  # noqa: RUF012 - the name that Jinja looks for

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own would escape <, > and & for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
