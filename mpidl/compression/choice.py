"""The section [sync.compression]."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from mpidl.compression import COMPRESSORS, Compressor
from mpidl.options import OneOf
from mpidl.registry import Choice, Registry


class CompressionChoice(Choice, frozen=True):
    """How gradients are compressed.

    Attributes:
        name: The compressor, or "none".
    """

    REGISTRY: ClassVar[Registry[Any]] = COMPRESSORS
    NONE: ClassVar[str] = "none"

    name: Annotated[str, OneOf(COMPRESSORS, "none")] = "none"

    def create(self, seed: int) -> Compressor | None:
        """The compressor, or None.

        Args:
            seed: Of stochastic rounding and random factors.
        """
        if self.name == self.NONE:
            return None
        return COMPRESSORS[self.name](self.options, seed=seed)
