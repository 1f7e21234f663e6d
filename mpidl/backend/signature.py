"""How a line of `mpidl.backend.table` is written: the arguments of a kernel and how a GPU covers
it.

An argument is `name:kind`, an array also `name:kind(size)`. A question mark behind the kind: may be
None, a null pointer. size: the number of elements of the array, a product (with *) of sizes among
the arguments and of numbers; without it the caller answers for it. `mpidl.backend.binder` checks
all of this in every call. Kinds:

- real: an array of REAL, the dtype that the kernel is compiled for
- acc: an array of the dtype that REAL is summed in: float32 where REAL has 16 bits, else REAL
- view: an array of REAL with strides that other arguments tell
- int64, uint8, float64, ...: an array of that dtype
- conv_geometry, pool_geometry, ...: a record of that struct of `kernels/geometry.h`; its fields are
  sizes, `argument.field`; in C a pointer to it, in CUDA its value
- size: an integer
- number: a number of the dtype of sums; in C a double
- double: a number in double precision
- code: a flag, or a number of `kernels/codes.h`
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mpidl.backend.headers import structs

SCALARS = ("size", "number", "double", "code")
_ARGUMENT = re.compile(r"(\w+):(\w+)(\?)?(?:\(([\w.*]+)\))?")

PLAIN, C, CUDA = "plain", "c", "cuda"
EVERYWHERE = (PLAIN, C, CUDA)


@dataclass(frozen=True)
class Argument:
    """An argument of a kernel.

    Attributes:
        name: The same in all backends.
        kind: See the module.
        optional: Whether it may be None.
        factors: Names of sizes, and numbers, whose product is the number of elements; None
            where it is not checked.
    """

    name: str
    kind: str
    optional: bool
    factors: tuple[str | int, ...] | None

    @property
    def is_struct(self) -> bool:
        """Whether it is a record of sizes."""
        return self.kind in structs()

    @property
    def is_array(self) -> bool:
        """Whether memory is passed, and not a number."""
        return self.kind not in SCALARS and not self.is_struct


@dataclass(frozen=True)
class Cover:
    """How a grid of CUDA threads covers the work.

    Attributes:
        shape: "each": a grid-stride loop over all elements; "warps": one warp an item; "groups":
            one block for 8 of the items of the last size; "blocks": one block an item; "columns":
            blocks of 32 columns by 8 rows, for each segment.
        sizes: Names of the arguments whose product is the number of elements or items; of
            "columns": the columns, and then the segments.
    """

    shape: str
    sizes: tuple[str, ...]


def each(*sizes: str) -> Cover:
    """A grid-stride loop over the product of `sizes`."""
    return Cover("each", sizes)


def warps(*sizes: str) -> Cover:
    """One warp an item."""
    return Cover("warps", sizes)


def groups(*sizes: str) -> Cover:
    """One block for 8 items of the last size."""
    return Cover("groups", sizes)


def blocks(*sizes: str) -> Cover:
    """One block an item."""
    return Cover("blocks", sizes)


def columns(*sizes: str) -> Cover:
    """Blocks of 32 columns by 8 rows; the second size counts the segments."""
    return Cover("columns", sizes)


@dataclass(frozen=True)
class Kernel:
    """A line of the table.

    Attributes:
        family: Name of the file in `kernels/cpu`, `kernels/cuda` and of the plain module.
        signature: See the module.
        cover: How a GPU covers the work; None where there is no CUDA kernel.
        backends: Which backends have the kernel.
        passes: Kernels that together do the same on a GPU, with arguments of the same names.
    """

    family: str
    signature: str
    cover: Cover | None
    backends: tuple[str, ...] = EVERYWHERE
    passes: tuple[str, ...] = ()

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """The signature, parsed."""
        found = []
        for text in self.signature.split():
            match = _ARGUMENT.fullmatch(text)
            if match is None:
                raise ValueError(f"cannot parse {text!r} of {self.signature!r}")
            name, kind, optional, size = match.groups()
            factors = None if size is None else tuple(_factor(text) for text in size.split("*"))
            found.append(Argument(name, kind, bool(optional), factors))
        return tuple(found)

    @cached_property
    def position(self) -> dict[str, int]:
        """Where each argument stands."""
        return {argument.name: index for index, argument in enumerate(self.arguments)}

    @cached_property
    def struct_position(self) -> int | None:
        """Where the record of sizes stands; a kernel has one at most."""
        return next((i for i, a in enumerate(self.arguments) if a.is_struct), None)

    def size(self, name: str, args: tuple[Any, ...]) -> int:
        """The size `name`, which may be a field `argument.field`, among the arguments of a call."""
        argument, _, field = name.partition(".")
        value = args[self.position[argument]]
        return int(value[field] if field else value)

    @cached_property
    def real_position(self) -> int | None:
        """Where the array stands whose dtype selects the compiled kernel; None: always float32."""
        reals = (i for i, a in enumerate(self.arguments) if a.kind in ("real", "view"))
        return next(reals, None)


def _factor(text: str) -> str | int:
    return int(text) if text.isdigit() else text
