"""Initial values of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Initializer = Callable[[np.random.Generator, tuple[int, ...], int], NDArray[Any]]


def zeros(generator: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> NDArray[Any]:
    """All zero."""
    return np.zeros(shape)


def he_normal(generator: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> NDArray[Any]:
    """Normal with standard deviation sqrt(2 / fan_in), before a ReLU (He et al., 2015)."""
    return np.asarray(generator.standard_normal(shape) * np.sqrt(2.0 / fan_in))


def lecun_normal(
    generator: np.random.Generator, shape: tuple[int, ...], fan_in: int
) -> NDArray[Any]:
    """Normal with standard deviation sqrt(1 / fan_in), without a ReLU (LeCun et al., 1998)."""
    return np.asarray(generator.standard_normal(shape) * np.sqrt(1.0 / fan_in))


def ones(generator: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> NDArray[Any]:
    """All one."""
    return np.ones(shape)


def small_normal(
    generator: np.random.Generator, shape: tuple[int, ...], fan_in: int
) -> NDArray[Any]:
    """Normal with standard deviation 0.02 (Radford et al., 2019)."""
    return np.asarray(generator.standard_normal(shape) * 0.02)


def fan_uniform(
    generator: np.random.Generator, shape: tuple[int, ...], fan_in: int
) -> NDArray[Any]:
    """Uniform in +- sqrt(1 / fan_in), usual for recurrent layers."""
    return np.asarray(generator.uniform(-1, 1, shape) * np.sqrt(1.0 / fan_in))


INITIALIZERS: dict[str, Initializer] = {
    "zeros": zeros,
    "ones": ones,
    "he_normal": he_normal,
    "lecun_normal": lecun_normal,
    "small_normal": small_normal,
    "fan_uniform": fan_uniform,
}
