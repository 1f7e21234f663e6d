"""The flat buffers: every parameter of a model is a view into one contiguous array, and every
gradient into a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpidl.backend import Array, Ops
from mpidl.nn.init import INITIALIZERS
from mpidl.nn.storage import Storage, WholeStorage

ALIGNMENT = 16  # elements: each float32 parameter starts on a 64-byte line


@dataclass(frozen=True)
class ParameterSpec:
    """What a layer declares.

    Attributes:
        name: Unique within the layer.
        shape: Of the parameter.
        init: The initializer (see mpidl.nn.init).
        fan_in: Of the initializer.
        trainable: False for state without gradient, such as running means; it lies in a buffer of
            its own.
        exact: Layers use it in full precision where they multiply with 16-bit copies of others;
            vectors always are.
    """

    name: str
    shape: tuple[int, ...]
    init: str = "zeros"
    fan_in: int = 1
    trainable: bool = True
    exact: bool = False

    @property
    def has_copy(self) -> bool:
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

    def view(self, flat: Array) -> Array:
        """Its elements of a flat buffer, in the shape of the parameter."""
        return flat[self.start : self.stop].reshape(self.spec.shape)


Reduce = Callable[[NDArray[np.float64]], None]


@dataclass
class ParameterShard:
    """The parameters that one rank's optimizer updates, where those are not the whole model.

    Attributes:
        ops: The backend of the arrays.
        dtype: Of values and gradients.
        values: (length,) pieces of the flat buffer, one behind the other.
        gradients: (length,), likewise.
        slots: Every tensor of the model, as the range of the shard that holds some of it (it may
            be empty).
        reduce: Sums a float64 host array over the ranks that hold the other shards, in place;
            None where nothing that the optimizer computes is to be summed.
    """

    ops: Ops
    dtype: np.dtype[Any]
    values: Array
    gradients: Array
    slots: dict[str, Slot]
    reduce: Reduce | None = None

    @property
    def length(self) -> int:
        """Number of elements."""
        return int(self.values.size)


class FlatParameters:
    """The parameters of a model, and what belongs to them.

    Padding between parameters is always zero, in values as in gradients.

    Args:
        specs: Of all parameters, in the order of the layers.
        ops: The backend.
        dtype: Of values and gradients.
        spare: Elements behind the gradients: a training step sends its scalars (loss, counts,
            flags) in the same message as its gradients.
        compute_dtype: Of activations. Where it has 16 bits, layers see rounded copies of the
            matrices, made by `refresh`, while `values` are the master weights (Micikevicius et
            al., 2018).

    Attributes:
        storage: Where values and gradients lie; `use` replaces it.
        values: (n,) parameters; (0,) where the storage holds them elsewhere.
        gradients: (n,) or (0,), likewise.
        message: The gradients with the spare elements behind them.
        spare: (spare,) the elements behind the gradients.
        state: What is not trainable.
        copies: (n,) 16-bit copies, or (0,).
        slots: Where each parameter lies, by name.
        state_slots: Where each part of `state` lies, by name.
        length: n, a multiple of `ALIGNMENT`.
        reduce: As of a `ParameterShard`: this is everything, so there is nothing to sum.
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
        self.ops = ops
        self.dtype = np.dtype(dtype)
        self.compute_dtype = self.dtype if compute_dtype is None else np.dtype(compute_dtype)
        self.reduce: Reduce | None = None
        self.slots, self.length = _lay_out([spec for spec in specs if spec.trainable])
        self.state_slots, state_length = _lay_out([spec for spec in specs if not spec.trainable])
        zeros = ops.xp.zeros
        self.state: Array = zeros(state_length, self.dtype)
        copied = self.length if self.compute_dtype != self.dtype else 0
        self.copies: Array = zeros(copied, self.compute_dtype)
        values, message = zeros(self.length, self.dtype), zeros(self.length + spare, self.dtype)
        self.use(WholeStorage(values, message))

    def use(self, storage: Storage) -> None:
        """Let values and gradients lie elsewhere from now on; they are not copied.

        Strategies call this before the first step. Views of single parameters that were taken
        before are out of date.
        """
        self.storage = storage
        self.values: Array = storage.values
        self.gradients: Array = storage.gradients
        self.message: Array = storage.message
        self.spare: Array = storage.message[storage.gradients.size :]

    @property
    def count(self) -> int:
        """Number of parameters, padding not counted."""
        return sum(slot.spec.size for slot in self.slots.values())

    @property
    def gathers_in_passes(self) -> bool:
        """Whether the ranks gather parameters together in the middle of a pass (see `Storage`)."""
        return self.storage.gathers_in_passes

    def value(self, name: str) -> Array:
        """The parameter or state `name` in its own shape, a view; of the master weights."""
        if name in self.state_slots:
            return self.state_slots[name].view(self.state)
        return self.storage.value(self.slots[name])

    def compute_value(self, name: str) -> Array:
        """The parameter or state `name` as layers compute with it."""
        slot = self.slots.get(name)
        if slot is None:
            return self.value(name)
        if self.copies.size and slot.spec.has_copy:
            return slot.view(self.copies)
        return self.storage.value(slot)

    def refresh(self) -> None:
        """Make the 16-bit copies again, after the values have changed."""
        if self.copies.size:
            self.ops.round_copy(self.values, self.copies)

    def gradient(self, name: str) -> Array:
        """The gradient of `name` in its own shape, a view."""
        return self.storage.gradient(self.slots[name])

    def initialize(self, seed: int, names: Iterable[str] | None = None) -> None:
        """Fill the values; the same on every rank and backend, whatever the number of ranks.

        Args:
            seed: Of the run.
            names: Of the parameters and state to fill; None: all.
        """
        for name in (*self.slots, *self.state_slots) if names is None else names:
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

    def make_shard(
        self, pieces: Sequence[tuple[int, int]], reduce: Reduce | None = None
    ) -> ParameterShard:
        """A shard of some elements, in zeroed memory of its own.

        Args:
            pieces: Ranges [start, stop) of the flat buffer, one behind the other in the shard. All
                elements of a tensor that are in the shard lie in one of them.
            reduce: See `ParameterShard`.
        """
        slots = {name: replace(slot, start=0, stop=0) for name, slot in self.slots.items()}
        low = 0
        for start, stop in pieces:
            for name, slot in self.slots.items():
                first, last = max(slot.start, start), min(slot.stop, stop)
                if first < last:
                    slots[name] = replace(slot, start=low + first - start, stop=low + last - start)
            low += stop - start
        values, gradients = (self.ops.xp.zeros(low, self.dtype) for _ in range(2))
        return ParameterShard(self.ops, self.dtype, values, gradients, slots, reduce)

    def first_nonfinite(self, flat: Array) -> str | None:
        """The first parameter whose part of `flat` (n,) holds a NaN or an infinity, or None."""
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
