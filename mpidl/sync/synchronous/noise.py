"""The gradient noise scale: about how large a batch may be before more samples stop helping (McCandlish et al., 2018)."""

from __future__ import annotations

from typing import Any

from mpidl.optim import RunState


class NoiseScale:
    """Estimates it from the gradients of single ranks and their mean. small, big: samples of each; decay: of running means.

    With |G|^2 the squared length of the true gradient and S the sum of the variances of one sample's, a mean over b samples has
    E|g|^2 = |G|^2 + S / b. Two sizes of b give both; S / |G|^2 is the noise scale, in samples.
    """

    def __init__(self, small: float, big: float, decay: float = 0.99) -> None:
        self.small, self.big, self.decay = small, big, decay
        self._noise, self._signal, self._weight = 0.0, 0.0, 0.0

    def add(self, small_squares: float, big_squares: float) -> None:
        """One step: the mean of |g|^2 over the ranks, and |g|^2 of the mean gradient."""
        if self.big <= self.small:
            return
        signal = (self.big * big_squares - self.small * small_squares) / (self.big - self.small)
        noise = (small_squares - big_squares) / (1 / self.small - 1 / self.big)
        self._signal = self.decay * self._signal + (1 - self.decay) * signal
        self._noise = self.decay * self._noise + (1 - self.decay) * noise
        self._weight = self.decay * self._weight + 1 - self.decay

    @property
    def value(self) -> float | None:
        """Samples; None before there is an estimate, or where noise hides the gradient altogether."""
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
        self.small, self.big = (
            state.take_number("small", self.small),
            state.take_number("big", self.big),
        )
        self._noise = state.take_number("noise", self._noise)
        self._signal = state.take_number("signal", self._signal)
        self._weight = state.take_number("weight", self._weight)

    def report(self) -> dict[str, Any]:
        """The estimate, and what it suggests: up to this batch size twice the batch nearly halves the steps."""
        if self.value is None:
            return {}
        return {
            "gradient_noise_scale": self.value,
            "suggested_global_batch": max(1, round(self.value)),
        }
