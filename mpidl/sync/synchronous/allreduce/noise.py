"""The gradient noise scale: up to which batch size more samples help (McCandlish et al., 2018)."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidl.backend import Array
from mpidl.nn import FlatParameters
from mpidl.optim import RunState, squared_norm
from mpidl.sync.strategy import StepScalars

SQUARES = 5  # place among the spare elements, behind the scalars of the step


class NoiseScale:
    """Estimates the noise scale from the gradients of single ranks and their mean.

    With |G|^2 the squared norm of the true gradient and S the sum of the variances of one sample's
    gradient, a mean over b samples has E|g|^2 = |G|^2 + S / b. Two sizes of b give both; S / |G|^2
    is the noise scale, in samples.

    Args:
        small: Samples of one rank's gradient.
        big: Samples of the mean gradient.
        decay: Of the running means.
    """

    def __init__(self, small: float, big: float, decay: float = 0.99) -> None:
        self.small = small
        self.big = big
        self.decay = decay
        self._noise = 0.0
        self._signal = 0.0
        self._weight = 0.0

    def add(self, small_squares: float, big_squares: float) -> None:
        """One step.

        Args:
            small_squares: The mean of |g|^2 over the ranks.
            big_squares: |g|^2 of the mean gradient.
        """
        if self.big <= self.small:
            return
        signal = (self.big * big_squares - self.small * small_squares) / (self.big - self.small)
        noise = (small_squares - big_squares) / (1 / self.small - 1 / self.big)
        self._signal = self.decay * self._signal + (1 - self.decay) * signal
        self._noise = self.decay * self._noise + (1 - self.decay) * noise
        self._weight = self.decay * self._weight + 1 - self.decay

    @property
    def value(self) -> float | None:
        """In samples; None before there is an estimate, or where noise hides the gradient."""
        if self._weight == 0 or self._signal <= 0:
            return None
        return max(self._noise, 0.0) / self._signal

    def state(self) -> RunState:
        """The running means."""
        state = RunState()
        state.set_numbers(
            small=self.small,
            big=self.big,
            noise=self._noise,
            signal=self._signal,
            weight=self._weight,
        )
        return state

    def load_state(self, state: RunState) -> None:
        """Go on with saved running means."""
        self.small = state.take_number("small", self.small)
        self.big = state.take_number("big", self.big)
        self._noise = state.take_number("noise", self._noise)
        self._signal = state.take_number("signal", self._signal)
        self._weight = state.take_number("weight", self._weight)

    def report(self) -> dict[str, Any]:
        """The estimate, and the batch it suggests: up to it twice the batch nearly halves steps."""
        if self.value is None:
            return {}
        return {
            "gradient_noise_scale": self.value,
            "suggested_global_batch": max(1, round(self.value)),
        }


class NoiseMeter:
    """Measures the noise scale of a run, from gradients before and after the exchange.

    Args:
        parameters: Whose gradients are exchanged, with the spare elements behind them.
        ranks: That sum their gradients.

    Attributes:
        scale: The estimate; None before the first step.
    """

    def __init__(self, parameters: FlatParameters, ranks: int) -> None:
        self.parameters = parameters
        self.ranks = ranks
        self.scale: NoiseScale | None = None
        self._squares = 0.0

    def add_own(self, gradients: Array) -> None:
        """Take this rank's gradients (a slice of them), before they leave."""
        self._squares += squared_norm(self.parameters, gradients)

    def write_own(self) -> None:
        """Put this rank's part of the mean of |g|^2 over the ranks among the scalars to be summed.

        The mean gradient of its own samples is `ranks` times its share of the global mean: a
        factor of ranks^2 in the square, and 1 / ranks of that for the mean.
        """
        own = np.array([self._squares * self.ranks], self.parameters.dtype)
        self._place[...] = self.parameters.ops.to_device(own)
        self._squares = 0.0

    def measure(self, sums: StepScalars) -> None:
        """After the exchange: one step of the estimate."""
        if self.scale is None:
            self.scale = NoiseScale(sums.count / self.ranks, sums.count)
        if sums.count == self.scale.big:  # not of a last, smaller batch
            self.scale.small = sums.count / self.ranks  # a resumed run may have other ranks
            small = float(self.parameters.ops.to_host(self._place)[0])
            self.scale.add(small, squared_norm(self.parameters, self.parameters.gradients))

    @property
    def _place(self) -> Array:
        return self.parameters.spare[SQUARES : SQUARES + 1]

    def state(self) -> RunState:
        """As of the estimate."""
        return self.scale.state() if self.scale is not None else RunState()

    def load_state(self, state: RunState) -> None:
        """Go on from what `state` returned."""
        if state.shared:
            self.scale = NoiseScale(0.0, 0.0)
            self.scale.load_state(state)

    def report(self) -> dict[str, Any]:
        """As of the estimate."""
        return self.scale.report() if self.scale is not None else {}
