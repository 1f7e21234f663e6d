"""Checks a tree of settings against the types of its sections, in the words of the file that a user wrote."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from mpidl.errors import ConfigError, nearest

CORRECT = "correct that value (see docs/configuration.md)"
LARGEST = 1 << 53  # of whole numbers: larger ones are no count of anything
Origin = Callable[[str], str]  # name of a setting -> where it was written


def check_tree(
    tree: dict[str, Any],
    kind: type[msgspec.Struct],
    origin: Origin,
    path: tuple[str, ...] = (),
    remedy: str = CORRECT,
) -> None:
    """ConfigError for the first unknown, missing or impossible setting below `path`. remedy: for values."""
    known = typing.get_type_hints(kind, include_extras=True)
    for key, value in tree.items():
        name = ".".join((*path, key))
        if key not in known:
            others = (".".join((*path, other)) for other in sorted(known))
            raise ConfigError(
                f"unknown key {name!r}", where=origin(name), remedy=nearest(name, others)
            )
        if not _is_section(known[key]):
            check_value(name, value, known[key], origin(name), remedy)
        elif isinstance(value, dict):
            check_tree(value, known[key], origin, (*path, key), remedy)
        else:
            raise ConfigError(
                f"{name!r} must be a section",
                where=origin(name),
                remedy=f"write [{name}] and keys below it",
            )
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in tree:
            _missing(".".join((*path, field.name)), known[field.name], origin)


def _is_section(kind: Any) -> bool:
    return (
        isinstance(kind, type)
        and not isinstance(kind, types.GenericAlias)
        and issubclass(kind, msgspec.Struct)
    )


def _missing(name: str, kind: Any, origin: Origin) -> None:
    if _is_section(kind):
        required = [field.name for field in msgspec.structs.fields(kind) if field.required]
        lines = ", ".join(f'{key} = "..."' for key in required)
        raise ConfigError(
            f"the section [{name}] is missing",
            where=origin(name),
            remedy=f"add [{name}] and below it {lines}",
        )
    section, _, key = name.rpartition(".")
    example = f'add {key} = "..." to the section [{section}], or --set {name}=...'
    raise ConfigError(f"{name!r} is missing", where=origin(name), remedy=example)


def check_value(name: str, value: Any, kind: Any, where: str, remedy: str = CORRECT) -> None:
    """ConfigError unless `value` has the type `kind` of the setting `name`. remedy: where it is no misspelt word."""
    finite = all(math.isfinite(number) for number in _numbers(value))
    try:
        msgspec.convert(value, kind)
        if finite:
            return
    except msgspec.ValidationError:
        pass
    words = [choice for choice in _choices(kind) if isinstance(choice, str)]
    if words and isinstance(value, str):
        remedy = nearest(value, words)
    raise ConfigError(
        f"{name} is {value!r}, but must be {describe(kind) if finite else 'finite'}",
        where=where,
        remedy=remedy,
    )


def _numbers(value: Any) -> Iterator[float]:
    """All floats in a value, however deep."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)


def _choices(kind: Any) -> list[Any]:
    """The values that a type lists one by one."""
    if typing.get_origin(kind) is typing.Literal:
        return list(typing.get_args(kind))
    return [choice for inner in typing.get_args(kind) for choice in _choices(inner)]


def describe(kind: Any) -> str:
    """A type in words, as in "a number above 0"."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return describe(args[0]) + _limits(
            [limit for limit in args[1:] if isinstance(limit, msgspec.Meta)]
        )
    if origin is typing.Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(repr(arg) for arg in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args if arg is not type(None))
    if origin is tuple:
        return (
            f"a list, in it {describe(args[0])}"
            if args[-1] is Ellipsis
            else f"a list of {len(args)}, in it {describe(args[0])}"
        )
    plain = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text in quotes",
    }
    return plain.get(kind, "a table of options" if origin is dict else str(kind))


def _limits(metas: list[msgspec.Meta]) -> str:
    texts = []
    for meta in metas:
        texts += [f"above {meta.gt}"] if meta.gt is not None else []
        texts += [f"of at least {meta.ge}"] if meta.ge is not None else []
        texts += [f"below {meta.lt}"] if meta.lt is not None else []
        texts += [f"at most {meta.le}"] if meta.le not in (None, LARGEST) else []
    return " " + " and ".join(texts) if texts else ""
