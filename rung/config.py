"""The base of every typed config: frozen, unknown keys are errors with the nearest match."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pydantic

from rung.errors import ConfigError


class Config(pydantic.BaseModel):
    """A typed, frozen record: fields with defaults that run, and descriptions with units."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


C = TypeVar("C", bound=Config)


def parse_config(
    cls: type[C], values: Mapping[str, Any], *, where: Callable[..., str] | None = None
) -> C:
    """`values` as a `cls`; ConfigError names every wrong key with its value and the way out.

    where: from the path of a wrong key to the prefix of its message, such as
    ("model", "size") -> "recipes/quickstart.yaml:12".
    """
    try:
        return cls.model_validate(dict(values))
    except pydantic.ValidationError as error:
        lines = []
        for detail in error.errors():
            prefix = f"{where(*map(str, detail['loc']))}: " if where else ""
            lines.append(prefix + _sentence(cls, detail))
        raise ConfigError("\n".join(lines)) from None


def _sentence(cls: type[Config], detail: Any) -> str:
    path = [str(part) for part in detail["loc"]]
    name = ".".join(path)
    if detail["type"] == "extra_forbidden":
        return f"unknown key {name!r}{did_you_mean(path[-1], _fields_at(cls, path[:-1]))}"
    return f"{name} = {detail.get('input')!r}: {detail['msg']}"


def _fields_at(cls: type[Config], path: list[str]) -> list[str]:
    fields: Any = cls
    for part in path:
        annotation = fields.model_fields[part].annotation if part in fields.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, Config)):
            return []
        fields = annotation
    return list(fields.model_fields)


def did_you_mean(word: str, known: list[str]) -> str:
    """'; did you mean X?' for the nearest of `known`, else the list of what is known."""
    close = nearest(word, known)
    if close is not None:
        return f"; did you mean {close!r}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


def nearest(word: str, known: list[str]) -> str | None:
    """What of `known` was probably meant by `word`."""
    close = difflib.get_close_matches(word, known, n=1)
    return close[0] if close else None
