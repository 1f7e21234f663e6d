"""Learning rate as a function of the step, so that a resumed job continues where it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LearningRate:
    """peak: the rate after warm-up; kind: "constant", "cosine" (to `floor` * peak; Loshchilov and Hutter, 2017) or "step".

    steps: steps in the whole run; warmup_steps: linear rise from 0 to peak (Goyal et al., 2017); milestones: steps at which
    the "step" schedule multiplies the rate by gamma.
    """

    peak: float
    steps: int
    kind: str = "constant"
    warmup_steps: int = 0
    floor: float = 0.0
    milestones: Sequence[int] = ()
    gamma: float = 0.1

    def at(self, step: int) -> float:
        """The rate for the step that follows `step` finished steps."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.kind == "step":
            return self.peak * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        if self.kind == "cosine":
            progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
            return self.peak * (
                self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
            )
        return self.peak
