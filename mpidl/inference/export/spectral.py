"""Spectral convolutions as products with the few rows of the Fourier matrices that they keep.

ONNX has a DFT, but of all modes, complex ones only on the way back, and few runtimes besides
onnxruntime know it. The rows of the kept modes need matrix products only, and less work while the
modes are few. Complex numbers are pairs (real, imaginary) in real matrices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpidl.inference.export.graph import Graph, Value, weights
from mpidl.nn import SpectralConv

Matrix = NDArray[np.float64]


def real_modes(size: int, modes: int) -> tuple[Matrix, Matrix]:
    """The lowest modes of a real Fourier transform, and the way back.

    Args:
        size: Points of the axis.
        modes: Kept, from 0 on.

    Returns:
        (2 * modes, size) real parts above imaginary ones, and (size, 2 * modes) as in irfft.
    """
    angle = 2 * np.pi / size * (np.outer(np.arange(modes), np.arange(size)) % size)
    there = np.concatenate((np.cos(angle), -np.sin(angle)))
    # a mode stands for its conjugate too, but for those that are their own
    single = (np.arange(modes) == 0) | (2 * np.arange(modes) == size)
    back = there.T * np.tile(np.where(single, 1.0, 2.0), 2) / size
    return there, back


def complex_modes(size: int, modes: int) -> tuple[Matrix, Matrix]:
    """The lowest modes of a complex Fourier transform, positive then negative, and the way back.

    Returns:
        (4 * modes, 2 * size) and (2 * size, 4 * modes); real parts come before imaginary ones.
    """
    kept = np.concatenate((np.arange(modes), np.arange(size - modes, size)))
    angle = 2 * np.pi / size * (np.outer(kept, np.arange(size)) % size)
    cos, sin = np.cos(angle), np.sin(angle)
    there = np.block([[cos, sin], [-sin, cos]])
    return there, there.T / size


def convert_spectral(graph: Graph, layer: SpectralConv, x: Value) -> Value:
    """A spectral convolution over one or two axes."""
    *outer, size, inputs = x.shape
    modes, outputs = layer.modes, layer.channels
    rows = outer[0] if outer else 1
    kept = 2 * modes if outer else 1  # modes of the outer axis
    there, back = real_modes(size, modes)
    value = graph.node("MatMul", [graph.constant(there), x.name])  # (n, [rows,] 2 modes, c)
    value = graph.reshape(value, -1, rows, 2, modes * inputs)
    value = graph.transpose(value, 0, 2, 1, 3)
    if outer:
        outer_there, outer_back = complex_modes(rows, modes)
        value = graph.reshape(value, -1, 2 * rows, modes * inputs)
        value = graph.node("MatMul", [graph.constant(outer_there), value])
    value = _mix(graph, layer, value, (kept, modes, inputs, outputs))
    if outer:
        value = graph.reshape(value, -1, 2 * kept, modes * outputs)
        value = graph.node("MatMul", [graph.constant(outer_back), value])
    value = graph.reshape(value, -1, 2, rows, modes, outputs)
    value = graph.transpose(value, 0, 2, 1, 3, 4)
    value = graph.reshape(value, -1, *outer, 2 * modes, outputs)
    return Value(graph.node("MatMul", [graph.constant(back), value]), (*outer, size, outputs))


def _mix(graph: Graph, layer: SpectralConv, value: str, sizes: tuple[int, int, int, int]) -> str:
    """The product of each mode with its complex matrix, of (n, 2, kept, modes, channels)."""
    kept, modes, inputs, outputs = sizes
    real, imaginary = weights(layer, "weight").reshape(2, kept * modes, inputs, outputs)
    matrices = np.block([[real, imaginary], [-imaginary, real]])
    value = graph.reshape(value, -1, 2, kept, modes, inputs)
    value = graph.transpose(value, 2, 3, 0, 1, 4)
    value = graph.reshape(value, kept * modes, -1, 2 * inputs)
    value = graph.node("MatMul", [value, graph.constant(matrices)])
    value = graph.reshape(value, kept, modes, -1, 2, outputs)
    return graph.transpose(value, 2, 3, 0, 1, 4)
