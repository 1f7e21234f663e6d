"""Registries: what can be chosen by name, one line each, imported when it is first used.

A registered class declares what it can be told in a nested `Options` section (see
`mpidl.options`). The configuration, the choices of the command line, error messages and the tables
of docs/configuration.md are all made from here.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, ClassVar, Generic, Self, TypeVar

import msgspec

from mpidl.errors import ConfigError, nearest
from mpidl.options import Place, Section, say_ineffective, unknown_key

T = TypeVar("T")


class NoOptions(Section, frozen=True):
    """The options of what has none."""


class Registry(Mapping[str, T], Generic[T]):
    """Implementations of one kind by name.

    Args:
        kind: What they are, for messages: "strategy", "optimizer".
        setting: The setting that chooses one, for messages: "sync.strategy".
        entries: Where each is: name -> "package.module:attribute".
    """

    def __init__(self, kind: str, setting: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self.setting = setting
        self.entries = dict(entries)
        self._loaded: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        """The implementation `name`.

        Raises:
            ConfigError: There is none of that name.
        """
        if name not in self._loaded:
            self.check(name)
            module, _, attribute = self.entries[name].partition(":")
            self._loaded[name] = getattr(importlib.import_module(module), attribute)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def check(self, name: Any, where: str = "") -> None:
        """Refuse a name that is not registered.

        Raises:
            ConfigError: There is no such name; the remedy has the nearest one.
        """
        if not isinstance(name, str) or name not in self.entries:
            words = str(name).replace("+", ",").split(",")
            several = any(word.strip() in self.entries for word in words)
            what = f"choose one {self.kind}" if several else f"there is no such {self.kind}"
            raise ConfigError(
                f"{self.setting} is {name!r}: {what}",
                where=where,
                remedy=nearest(str(name), self.entries),
            )

    def options(self, name: str) -> type[Section]:
        """What the implementation `name` can be told: its `Options`, or its keyword arguments."""
        return options_of(self[name])


@cache
def options_of(implementation: Any) -> type[Section]:
    """The options of a registered class (`Options`) or function (its keyword-only arguments)."""
    declared = getattr(implementation, "Options", None)
    if declared is not None:
        return typing.cast("type[Section]", declared)
    if inspect.isclass(implementation):
        return NoOptions
    function = getattr(implementation, "func", implementation)  # of a functools.partial
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = inspect.signature(implementation).parameters.values()
    fields = [(p.name, hints[p.name], p.default) for p in parameters if p.kind is p.KEYWORD_ONLY]
    made = msgspec.defstruct(
        f"{function.__name__}_options", fields, bases=(Section,), frozen=True, kw_only=True
    )
    made.__doc__ = function.__doc__
    return typing.cast("type[Section]", made)


class Choice(Section, frozen=True):
    """A section that chooses an implementation, and takes its options beside its own keys.

    An option of another implementation has no effect, which is noted; or it is refused, if that
    implementation says so (`EXCLUSIVE`).
    """

    KEY: ClassVar[str] = "name"
    REGISTRY: ClassVar[Registry[Any]]
    NONE: ClassVar[str] = ""  # the name that chooses nothing, where there is one

    options: Section = NoOptions()

    @property
    def chosen(self) -> Any:
        """The implementation."""
        return self.REGISTRY[getattr(self, self.KEY)]

    @classmethod
    def unfold(cls, value: Any) -> Any:
        """A name alone chooses what it names: `compression = "topk"`."""
        return {cls.KEY: value} if isinstance(value, str) else value

    @classmethod
    def keys(cls) -> dict[str, Any]:
        """The section's own settings."""
        return {key: kind for key, kind in super().keys().items() if key != "options"}

    @classmethod
    def read(cls, tree: Mapping[str, Any], place: Place) -> Self:
        """As `Section.read`, with the options of what is chosen."""
        known = cls.keys()
        default = next(f.default for f in msgspec.structs.fields(cls) if f.name == cls.KEY)
        name = tree.get(cls.KEY, default)
        if name == cls.NONE:
            kind: type[Section] = NoOptions
        else:
            cls.REGISTRY.check(name, place.origin(place.name(cls.KEY)))
            kind = cls.REGISTRY.options(name)
        taken = kind.keys()
        own, options = {}, {}
        for key, value in tree.items():
            if key in known:
                own[key] = value
            elif key in taken:
                options[key] = value
            else:
                cls._unused(key, value, name, place, {*known, *taken})
        values = cls.read_values(own, place)
        made = cls(**values, options=kind.read(options, place))
        made.check(place)
        made.say_ineffective(tree, place)
        return made

    @classmethod
    def _unused(cls, key: str, value: Any, name: str, place: Place, known: set[str]) -> None:
        """Note or refuse an option of other implementations; refuse one that nobody has."""
        setting = place.name(cls.KEY)
        kinds = {other: cls.REGISTRY.options(other) for other in cls.REGISTRY}
        holders = {other: kind for other, kind in kinds.items() if key in kind.keys()}
        if not holders:
            raise unknown_key(place, key, known)
        if any(key in kind.EXCLUSIVE for kind in holders.values()):
            listed = " or ".join(f'"{other}"' for other in holders)
            raise place.error(
                f"{place.name(key)} works with {setting} = {listed} only, not with {name!r}",
                key,
                remedy=f"set {setting} = {listed}, or remove {place.name(key)}",
            )
        next(iter(holders.values())).read_values({key: value}, place)
        say_ineffective(place, key, setting, name, tuple(holders))

    def to_tree(self) -> dict[str, Any]:
        """As `Section.to_tree`, the options beside the section's own keys."""
        found = super().to_tree()
        options: dict[str, Any] = found.pop("options")
        return found | options


class Selection(Section, frozen=True):
    """A section in which each key is an implementation, with its options as a table.

    Attributes:
        entries: The options of what is chosen, by name.
    """

    REGISTRY: ClassVar[Registry[Any]]

    entries: dict[str, Section] = {}  # noqa: RUF012 (msgspec copies it)

    @classmethod
    def keys(cls) -> dict[str, Any]:
        """The options of every implementation."""
        return {name: cls.REGISTRY.options(name) for name in cls.REGISTRY}

    @classmethod
    def read(cls, tree: Mapping[str, Any], place: Place) -> Self:
        """As `Section.read`."""
        known = cls.keys() if tree else {}
        for key in tree:
            if key not in known:
                raise unknown_key(place, key, known)
        made = cls(entries=cls._read_entries(tree, place))
        made.check(place)
        return made

    @classmethod
    def _read_entries(cls, tree: Mapping[str, Any], place: Place) -> dict[str, Section]:
        known, found = cls.keys() if tree else {}, {}
        for key, value in tree.items():
            if not isinstance(value, Mapping):
                raise place.error(
                    f"{place.name(key)} is {value!r}, but must be a table of options",
                    key,
                    remedy=f"write {key} = {{}} for its defaults",
                )
            found[key] = known[key].read(value, place.inside(key))
        return found

    def to_tree(self) -> dict[str, Any]:
        """The options of what is chosen."""
        return {name: options.to_tree() for name, options in self.entries.items()}
