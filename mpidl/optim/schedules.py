"""Learning rate as a function of the step, so that a resumed job continues where it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LearningRate:
    """A learning-rate schedule.

    Attributes:
        peak: The rate after warm-up.
        steps: Steps of the whole run.
        kind: "constant", "cosine" (Loshchilov and Hutter, 2017) or "step".
        warmup_steps: Linear rise from 0 to the peak (Goyal et al., 2017).
        floor: The cosine ends at `floor` x peak.
        milestones: Steps at which "step" multiplies the rate by `gamma`.
        gamma: See milestones.
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
