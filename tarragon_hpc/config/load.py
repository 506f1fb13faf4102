"""Read, override, check and write a configuration."""

from __future__ import annotations

import copy
import difflib
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError

from tarragon_hpc.config import sites
from tarragon_hpc.config.merge import merged
from tarragon_hpc.config.schema import Config
from tarragon_hpc.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic_core import ErrorDetails

# Its value is not repeated in an error, which may end up in a log.
_SECRET = ("gateway", "api_keys")


def parse_override(text: str) -> tuple[list[str], Any]:
    """Split `a.b=c` into (["a", "b"], value); the value is read as YAML."""
    key, separator, value = text.partition("=")
    path = key.strip().split(".")
    if not separator or not all(path):
        raise ConfigError("--set", f"{text!r}: expected KEY.SUBKEY=VALUE")
    try:
        return path, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(key, f"{value!r} is not a YAML value") from None


def load_config(
    source: str | Path | dict[str, Any], overrides: Iterable[str] = (), *, site: str | None = None
) -> Config:
    """A checked configuration from a YAML file (or a dict), with `a.b=c` overrides applied.

    Below all that is what the site's file says, of `site` or else `cluster.slurm.site`.
    Relative `model.path` in a file is taken as is (relative to the working directory), as on the
    command line. Raises ConfigError with one line that names the key and what is allowed.
    """
    data = copy.deepcopy(source) if isinstance(source, dict) else _read(Path(source))
    for text in overrides:
        path, value = parse_override(text)
        node = data
        for i, part in enumerate(path[:-1]):
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(".".join(path[: i + 1]), "is a value, not a section")
        node[path[-1]] = value
    name = _take_site(data)
    if (name := site or name) is not None:
        data = merged(_read_site(name), data)
    return _check(data)


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _check(data: dict[str, Any], of: str = "") -> Config:
    try:
        return Config.model_validate(data, strict=False)
    except ValidationError as error:
        raise _explain(error, of) from None


def _take_site(data: dict[str, Any]) -> str | None:
    """Remove `cluster.slurm.site`; returns what it was, if it was a text."""
    node: Any = data
    for part in ("cluster", "slurm"):
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or not isinstance(node.get("site"), str):
        return None  # what is no text is refused with the rest
    name: str = node.pop("site")
    return name


def _read_site(name: str) -> dict[str, Any]:
    """What a site's file says, checked on its own, so that its mistakes are told as its own."""
    path = sites.find_site(name)
    data = sites.expand(_read(path, "must hold sections of a configuration"), path.name)
    if _take_site(copy.deepcopy(data)) is not None:
        raise ConfigError(f"{path.name}: {sites.KEY}", "is not for the file of a site itself")
    model = data.get("model")
    some = {"path": "-", **model} if isinstance(model, dict) else {"path": "-"}
    _check({**data, "model": some} if model is None or isinstance(model, dict) else data, path.name)
    return data


def _read(
    path: Path, needs: str = "must hold sections, at least `model: {path: DIR}`"
) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), error.strerror or "cannot be read") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "is not a UTF-8 text file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(str(path), f"is not valid YAML{where}") from None
    if not isinstance(data, dict):
        raise ConfigError(str(path), needs)
    return data


def _explain(error: ValidationError, of: str = "") -> ConfigError:
    """The first problem as one line; unknown keys first, since they cause the others."""
    details = sorted(error.errors(), key=lambda d: d["type"] != "extra_forbidden")
    first = details[0]
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    problem = _problem(first)
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return ConfigError(f"{of}: {key}" if of else key, problem + more)


def _problem(detail: ErrorDetails) -> str:
    kind, value = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        known = _keys_at(detail["loc"][:-1])
        close = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"unknown key; {hint}allowed: {', '.join(known)}"
    if kind == "missing":
        return "is required"
    message = detail["msg"].removeprefix("Value error, ")
    if message[1:2].islower():
        message = message[:1].lower() + message[1:]
    return message if detail["loc"][:2] == _SECRET else f"{value!r}: {message}"


def _keys_at(path: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in path:
        annotation = model.model_fields[str(part)].annotation
        kinds = [annotation, *typing.get_args(annotation)]  # also of a section that may be None
        sections = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not sections:
            return []
        model = sections[0]
    return list(model.model_fields)
