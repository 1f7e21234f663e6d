"""What a checkpoint holds besides parameters and optimizer buffers, to resume bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


@dataclass
class RunState:
    """Host arrays by name.

    A name may be in both: a rank uses its own array where the number of ranks is the same as when
    it was saved, else the shared one.

    Attributes:
        shared: Equal on all ranks, or such that any rank's will do.
        own: Of this rank alone.
    """

    shared: Arrays = field(default_factory=dict)
    own: Arrays = field(default_factory=dict)

    def set_numbers(self, *, own: bool = False, **values: float) -> None:
        """Keep single numbers; own: they may differ between ranks."""
        for name, value in values.items():
            self.shared[name] = np.array([value], np.float64)
            if own:
                self.own[name] = self.shared[name].copy()

    def take_number(self, name: str, default: float) -> float:
        """The number under `name`, which is removed; `default` where there is none."""
        found = self.take(name)
        return default if found is None else float(found.reshape(-1)[0])

    def take(self, name: str) -> NDArray[Any] | None:
        """The array under `name`, which is removed: this rank's own before the shared one."""
        shared = self.shared.pop(name, None)
        own = self.own.pop(name, None)
        return shared if own is None else own

    def add(self, prefix: str, other: RunState) -> None:
        """Include another state, its names behind `prefix` and a point."""
        self.shared |= {f"{prefix}.{name}": array for name, array in other.shared.items()}
        self.own |= {f"{prefix}.{name}": array for name, array in other.own.items()}

    def take_section(self, prefix: str) -> RunState:
        """What `add` has included under `prefix`, which is removed."""
        start = f"{prefix}."
        section = RunState()
        for target, source in ((section.shared, self.shared), (section.own, self.own)):
            for name in [name for name in source if name.startswith(start)]:
                target[name.removeprefix(start)] = source.pop(name)
        return section

    def names(self) -> Iterator[str]:
        """All names, each once."""
        yield from dict.fromkeys((*self.shared, *self.own))


class Stateful(Protocol):
    """Something with a state of this kind."""

    def state(self) -> RunState:
        """Copies, or arrays that nobody changes before they are saved."""

    def load_state(self, state: RunState) -> None:
        """Resume from what `state` returned.

        Args:
            state: What is used is taken out of it; what is missing starts anew.
        """
