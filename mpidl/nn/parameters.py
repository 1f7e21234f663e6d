"""The flat buffer: every parameter of a model is a view into one contiguous array, every gradient into a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpidl.backend import Array, Ops
from mpidl.nn.init import INITIALIZERS

ALIGNMENT = 16  # elements: each float32 parameter starts on a 64-byte line


@dataclass(frozen=True)
class ParameterSpec:
    """What a layer declares: a name, a shape, an initializer (see mpidl.nn.init) and its fan-in.

    trainable: False for state without gradient, such as running means; it lies in a buffer of its own. exact: layers use it in
    full precision where others multiply with a 16-bit copy; vectors always are.
    """

    name: str
    shape: tuple[int, ...]
    init: str = "zeros"
    fan_in: int = 1
    trainable: bool = True
    exact: bool = False

    @property
    def rounded(self) -> bool:
        """Whether a 16-bit copy of it is made where the model computes with one."""
        return self.trainable and not self.exact and len(self.shape) > 1

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Slot:
    """Where a parameter lies in the flat buffer: elements [start, stop)."""

    spec: ParameterSpec
    start: int
    stop: int


Sum = Callable[[NDArray[np.float64]], None]


@dataclass
class FlatPart:
    """What an optimizer works on where that is not the whole model: parts of the flat buffers, put together.

    values, gradients: (length,). slots: every tensor, as the range of this part that holds some of it (it may be empty).
    reduce: sums a float64 host array over the ranks that hold the other parts, in place.
    """

    ops: Ops
    dtype: np.dtype[Any]
    values: Array
    gradients: Array
    slots: dict[str, Slot]
    reduce: Sum | None = None

    @property
    def length(self) -> int:
        """Number of elements."""
        return int(self.values.size)


class Windows(Protocol):
    """Where parameters or gradients of a few layers lie for a while, if they do not lie in the flat buffers for good."""

    def value(self, slot: Slot) -> Array | None:
        """The values of a slot, flat; None: where they always are."""

    def gradient(self, slot: Slot) -> Array | None:
        """The gradients of a slot, flat; None: where they always are."""

    def gradient_range(self, start: int, stop: int) -> list[Array]:
        """Where the gradients [start, stop) lie."""

    @property
    def gathers_in_passes(self) -> bool:
        """Whether the ranks gather parameters together in the middle of a pass."""

    def enter(self, layer: str) -> None:
        """The passes come to a layer (of the model itself, not one inside another)."""


class FlatParameters:
    """values: (n,) parameters; gradients: (n,); message: (n + spare,) gradients with `spare` elements behind them; state:
    what is not trainable.

    The spare elements let a training step send its scalars (loss, counts, flags) in the same message as its gradients.
    Padding between parameters is always zero, in values as in gradients. compute_dtype: of activations; where it has 16
    bits, the layers see rounded copies of the matrices, made by `refresh`, while `values` are the master weights
    (Micikevicius et al., 2018).
    """

    def __init__(
        self,
        specs: Sequence[ParameterSpec],
        ops: Ops,
        dtype: DTypeLike = np.float32,
        spare: int = 8,
        *,
        compute_dtype: DTypeLike | None = None,
    ) -> None:
        self.ops, self.dtype = ops, np.dtype(dtype)
        self.windows: Windows | None = None
        self.reduce: Sum | None = None  # as in FlatPart: nothing to sum, this is everything
        self.compute_dtype = self.dtype if compute_dtype is None else np.dtype(compute_dtype)
        self.slots, self.length = _lay_out([spec for spec in specs if spec.trainable])
        self.state_slots, state_length = _lay_out([spec for spec in specs if not spec.trainable])
        self.state: Array = ops.xp.zeros(state_length, self.dtype)
        self.values: Array = ops.xp.zeros(self.length, self.dtype)
        self.message: Array = ops.xp.zeros(self.length + spare, self.dtype)
        self.gradients: Array = self.message[: self.length]
        self.rounded: Array = ops.xp.zeros(
            self.length if self.compute_dtype != self.dtype else 0, self.compute_dtype
        )
        self.spare: Array = self.message[self.length :]

    @property
    def count(self) -> int:
        """Number of parameters, padding not counted."""
        return sum(slot.spec.size for slot in self.slots.values())

    def value(self, name: str) -> Array:
        """The parameter or state `name` in its own shape, a view; of the master weights."""
        if name in self.state_slots:
            return _view(self.state, self.state_slots[name])
        slot = self.slots[name]
        window = self.windows.value(slot) if self.windows is not None else None
        return _view(self.values, slot) if window is None else window.reshape(slot.spec.shape)

    def compute_value(self, name: str) -> Array:
        """The parameter or state `name` as layers compute with it."""
        slot = self.slots.get(name)
        return (
            _view(self.rounded, slot)
            if slot is not None and self.rounded.size and slot.spec.rounded
            else self.value(name)
        )

    def refresh(self) -> None:
        """Make the 16-bit copies again, after the values have changed."""
        if self.rounded.size:
            self.ops.round_copy(self.values, self.rounded)

    def gradient(self, name: str) -> Array:
        """The gradient of `name` in its own shape, a view."""
        slot = self.slots[name]
        window = self.windows.gradient(slot) if self.windows is not None else None
        return _view(self.gradients, slot) if window is None else window.reshape(slot.spec.shape)

    def gradient_range(self, start: int, stop: int) -> list[Array]:
        """Where the gradients [start, stop) lie, once backward has written them."""
        if self.windows is None:
            return [self.gradients[start:stop]]
        return self.windows.gradient_range(start, stop)

    @property
    def gathers_in_passes(self) -> bool:
        """Whether the ranks gather parameters together in the middle of a pass.

        Then all ranks run equally many passes, and an error on one of them cannot wait for the end
        of the step: the others wait in the pass.
        """
        return self.windows is not None and self.windows.gathers_in_passes

    def initialize(self, seed: int) -> None:
        """Fill the values; the same on every rank and backend, whatever the number of ranks."""
        for name in (*self.slots, *self.state_slots):
            self.value(name)[...] = self.ops.to_device(self.initial(name, seed))

    def initial(self, name: str, seed: int) -> NDArray[Any]:
        """What `initialize` gives a parameter or state, on the host."""
        slot = self.slots[name] if name in self.slots else self.state_slots[name]
        index = [*self.slots, *self.state_slots].index(name)
        generator = np.random.Generator(np.random.Philox(key=[seed, index]))
        host: NDArray[Any] = INITIALIZERS[slot.spec.init](
            generator, slot.spec.shape, slot.spec.fan_in
        )
        return host.astype(self.dtype)

    def first_nonfinite(self, flat: Array) -> str | None:
        """The first parameter whose part of `flat` (values or gradients) holds a NaN or an infinity, or None."""
        xp: Any = self.ops.xp
        for name, slot in self.slots.items():
            if not bool(xp.isfinite(flat[slot.start : slot.stop]).all()):
                return name
        return None


def _lay_out(specs: Sequence[ParameterSpec]) -> tuple[dict[str, Slot], int]:
    """Where each lies, and the length of all."""
    slots: dict[str, Slot] = {}
    end = 0
    for spec in specs:
        start = -(-end // ALIGNMENT) * ALIGNMENT
        end = start + spec.size
        slots[spec.name] = Slot(spec, start, end)
    return slots, -(-end // ALIGNMENT) * ALIGNMENT


def _view(flat: Array, slot: Slot) -> Array:
    return flat[slot.start : slot.stop].reshape(slot.spec.shape)
