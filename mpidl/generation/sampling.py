"""How the next token is chosen from the outputs of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: Divides the logits; 0: always the most probable token.
        top_k: Only the most probable tokens are drawn; 0: any number.
        top_p: Only the most probable tokens that together have this probability are drawn (Holtzman
            et al., 2020).
        seed: The same tokens are drawn for a seed, whatever else is generated at the same time.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        limits: dict[str, tuple[Any, bool, str]] = {
            "temperature": (self.temperature, 0 <= self.temperature <= 100, "from 0 to 100"),
            "top_k": (self.top_k, 0 <= self.top_k < 1 << 31, "0 (any) or a number of tokens"),
            "top_p": (self.top_p, 0 < self.top_p <= 1, "above 0 and up to 1"),
            "seed": (self.seed, 0 <= self.seed < 1 << 64, "from 0 to 2^64 - 1"),
        }
        for name, (value, fits, wanted) in limits.items():
            if not fits:
                raise ConfigError(
                    f"{name} is {value!r}, but must be {wanted}",
                    where=name,
                    remedy="correct that value",
                )

    def choose(self, logits: NDArray[Any], number: int) -> int:
        """The next token.

        Args:
            logits: (vocabulary,) of the last token.
            number: How many tokens of this sequence have been drawn before.
        """
        if self.temperature == 0:
            return int(logits.argmax())
        exact = logits.astype(np.float64) / self.temperature
        order = np.argsort(-exact, kind="stable")
        if self.top_k:
            order = order[: self.top_k]
        shares = np.exp(exact[order] - exact[order[0]])
        total = np.cumsum(shares / shares.sum())
        if self.top_p < 1:
            kept = int(np.searchsorted(total, self.top_p)) + 1
            order, total = order[:kept], total[:kept] / total[min(kept, len(total)) - 1]
        drawn = np.random.Generator(np.random.Philox(key=[self.seed, number])).random()
        place = min(int(np.searchsorted(total, drawn, side="right")), len(order) - 1)
        return int(order[place])
