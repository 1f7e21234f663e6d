"""Sections of settings: typed structs, read from a tree of settings in the words of its writer.

A `Section` says what each field is in its docstring, one line each below `Attributes:`; the tables
of docs/configuration.md are made from them. What cannot work together within a section is refused
by its `check`. `mpidl.registry.Choice` is a section that chooses an implementation by name.
"""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self

import msgspec
from msgspec import Meta

from mpidl.errors import ConfigError, nearest

CORRECT = "correct that value (see docs/configuration.md)"
LARGEST = 1 << 53  # of whole numbers: larger ones are no count of anything
Positive = Annotated[int, Meta(ge=1, le=LARGEST)]
NotNegative = Annotated[int, Meta(ge=0, le=LARGEST)]
Rate = Annotated[float, Meta(gt=0)]
NotNegativeNumber = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
MebiBytes = Annotated[float, Meta(ge=0, le=LARGEST)]
Share = Annotated[float, Meta(ge=0, lt=1)]  # below one: momenta, probabilities of dropping
SET: tuple[Any, ...] = ()  # in NEEDS: any value that is not 0


class OneOf:
    """A text among names that are known later than the type: `Annotated[str, OneOf(registry)]`."""

    def __init__(self, names: Iterable[str], *more: str) -> None:
        self._names = names
        self._more = more

    @property
    def names(self) -> tuple[str, ...]:
        """The names."""
        return (*self._more, *self._names)


@dataclass(frozen=True)
class Place:
    """Where a section stands: its path in the tree, and in whose words to speak of it.

    Attributes:
        path: Names of the sections from the root of the tree to this one.
        origin: The full name of a setting -> where it was written, for messages.
        note: Told of settings that have no effect.
        remedy: For impossible values.
    """

    path: tuple[str, ...] = ()
    origin: Callable[[str], str] = lambda name: ""
    note: Callable[[str], None] = lambda text: None
    remedy: str = CORRECT

    def name(self, key: str) -> str:
        """The full name of a setting, as in `--set`."""
        return ".".join((*self.path, key))

    def inside(self, key: str) -> Place:
        """The place of a section in this one."""
        return replace(self, path=(*self.path, key))

    def error(self, what: str, key: str, *, remedy: str) -> ConfigError:
        """An error about the setting `key`."""
        return ConfigError(what, where=self.origin(self.name(key)), remedy=remedy)


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all sections."""

    # Settings that work only beside another one: key -> (other key, its values, or SET)
    NEEDS: ClassVar[dict[str, tuple[str, tuple[Any, ...]]]] = {}
    # Options that are refused, not only noted, where another implementation is chosen
    EXCLUSIVE: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def read(cls, tree: Mapping[str, Any], place: Place) -> Self:
        """This section from a tree of settings.

        Args:
            tree: Settings by name; sections in it are trees themselves.
            place: Where it stands.

        Raises:
            ConfigError: A setting is unknown, missing or impossible.
        """
        known = cls.keys()
        for key in tree:
            if key not in known:
                raise unknown_key(place, key, known)
        made = cls(**cls.read_values(tree, place))
        made.check(place)
        made.say_ineffective(tree, place)
        return made

    @classmethod
    def unfold(cls, value: Any) -> Any:
        """The tree for which `value` is a short form, if it is one."""
        return value

    @classmethod
    def keys(cls) -> dict[str, Any]:
        """The settings of this section: name -> type."""
        hints = typing.get_type_hints(cls, include_extras=True)
        return {field.name: hints[field.name] for field in msgspec.structs.fields(cls)}

    @classmethod
    def read_values(cls, tree: Mapping[str, Any], place: Place) -> dict[str, Any]:
        """The settings of this section that `tree` has, in their types."""
        known = cls.keys()
        values: dict[str, Any] = {}
        for key, value in tree.items():
            kind, name = known[key], place.name(key)
            if not is_section(kind):
                where = place.origin(name)
                values[key] = check_value(name, value, kind, where, place.remedy)
                continue
            given = kind.unfold(value)
            if not isinstance(given, Mapping):
                remedy = f"write [{name}] and keys below it"
                raise place.error(f"{name!r} must be a section", key, remedy=remedy)
            values[key] = kind.read(given, place.inside(key))
        for field in msgspec.structs.fields(cls):
            if field.required and field.name not in tree:
                raise _missing(place, field.name, known[field.name])
        return values

    def check(self, place: Place) -> None:
        """Refuse settings that are possible each, but not together.

        Raises:
            ConfigError: They are not.
        """

    def say_ineffective(self, tree: Mapping[str, Any], place: Place) -> None:
        """Note the settings in `tree` that have no effect beside the others."""
        for key, (other, values) in self.NEEDS.items():
            value = getattr(self, other)
            if key in tree and not (value in values or (values == SET and value)):
                say_ineffective(place, key, place.name(other), value, values)

    def to_tree(self) -> dict[str, Any]:
        """The tree of settings from which `read` makes this section, of plain values."""
        found: dict[str, Any] = {}
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            plain = value.to_tree() if isinstance(value, Section) else msgspec.to_builtins(value)
            found |= {field.name: plain} if plain is not None else {}
        return found


def say_ineffective(
    place: Place, key: str, other: str, value: Any, values: tuple[Any, ...]
) -> None:
    """Note that the setting `key` works beside some values of another one only."""
    choices = " or ".join(map(repr, values))
    wanted = f"with {other} = {choices} only" if values else f"where {other} is set"
    place.note(f"{place.name(key)} has no effect: {other} is {value!r}, and it works {wanted}")


def unknown_key(place: Place, key: str, known: Iterable[str]) -> ConfigError:
    """The error for a key that a section does not have."""
    name = place.name(key)
    others = (place.name(other) for other in sorted(known))
    return place.error(f"unknown key {name!r}", key, remedy=nearest(name, others))


def is_section(kind: Any) -> bool:
    """Whether a type is a section."""
    plain = isinstance(kind, type) and not isinstance(kind, types.GenericAlias)
    return plain and issubclass(kind, Section)


def _missing(place: Place, key: str, kind: Any) -> ConfigError:
    name = place.name(key)
    if is_section(kind):
        required = [field.name for field in msgspec.structs.fields(kind) if field.required]
        lines = ", ".join(f'{key} = "..."' for key in required)
        remedy = f"add [{name}] and below it {lines}"
        return place.error(f"the section [{name}] is missing", key, remedy=remedy)
    section = ".".join(place.path)
    example = f'add {key} = "..." to the section [{section}], or --set {name}=...'
    return place.error(f"{name!r} is missing", key, remedy=example)


_ENTRY = re.compile(r"^    (\w+): (.*(?:\n {5,}\S.*)*)", re.MULTILINE)


def documented(kind: Any) -> dict[str, str]:
    """What a docstring says of each setting (`Attributes:` of a section, `Args:`)."""
    text = inspect.cleandoc(kind.__doc__ or "")
    listed = re.search(r"^(?:Attributes|Args):\n(.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    return (
        {name: " ".join(words.split()) for name, words in _ENTRY.findall(listed[1])}
        if listed
        else {}
    )


def check_value(name: str, value: Any, kind: Any, where: str, remedy: str = CORRECT) -> Any:
    """The value of the setting `name` in its type `kind`.

    Args:
        name: Its full name, for messages.
        value: As it was written.
        kind: Its type.
        where: Where it was written.
        remedy: For impossible values that are no misspelt words.

    Raises:
        ConfigError: It does not have that type.
    """
    finite = all(math.isfinite(number) for number in _numbers(value))
    names = _choices(kind)
    try:
        converted = msgspec.convert(value, kind)
        if finite and not (_one_of(kind) and converted not in names):
            return converted
    except msgspec.ValidationError:
        pass
    words = [choice for choice in names if isinstance(choice, str)]
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


def _one_of(kind: Any) -> OneOf | None:
    found = (more for more in getattr(kind, "__metadata__", ()) if isinstance(more, OneOf))
    return next(found, None)


def _choices(kind: Any) -> list[Any]:
    """The values that a type lists one by one."""
    if typing.get_origin(kind) is typing.Literal:
        return list(typing.get_args(kind))
    if (names := _one_of(kind)) is not None:
        return list(names.names)
    return [choice for inner in typing.get_args(kind) for choice in _choices(inner)]


def describe(kind: Any) -> str:
    """A type in words, as in "a number above 0"."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if (names := _one_of(kind)) is not None:
        return "one of " + ", ".join(map(repr, names.names))
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
