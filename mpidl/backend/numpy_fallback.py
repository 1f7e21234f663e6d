"""The contract in pure NumPy, for machines where no C compiler was at hand; also the oracle of the C kernels' tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mpidl.backend.ops import Conv2DGeometry

NDArr = NDArray[Any]


def bias_act(y: NDArr, bias: NDArr | None, relu: bool) -> None:
    """Ops.bias_act; without a bias only the activation."""
    if bias is not None:
        y += bias
    if relu:
        np.maximum(y, 0, out=y)


def _columns(x: NDArr, g: Conv2DGeometry) -> NDArr:
    """(n * oh * ow, kh * kw * ci): the inputs under each output pixel."""
    padded = np.pad(x, ((0, 0), (g.pad, g.pad), (g.pad, g.pad), (0, 0)))
    windows = sliding_window_view(padded, (g.kh, g.kw), axis=(1, 2))[:, :: g.stride, :: g.stride]
    return np.ascontiguousarray(windows.transpose(0, 1, 2, 4, 5, 3)).reshape(
        -1, g.kh * g.kw * g.in_channels
    )


def conv2d_forward(
    x: NDArr, w: NDArr, b: NDArr | None, out: NDArr, g: Conv2DGeometry, relu: bool
) -> None:
    """Ops.conv2d_forward."""
    flat = out.reshape(-1, g.out_channels)
    np.matmul(_columns(x, g), w.reshape(-1, g.out_channels), out=flat)
    bias_act(flat, b, relu)


def conv2d_backward_input(dy: NDArr, w: NDArr, out: NDArr, g: Conv2DGeometry) -> None:
    """Ops.conv2d_backward_input."""
    n = dy.shape[0]
    columns = (dy.reshape(-1, g.out_channels) @ w.reshape(-1, g.out_channels).T).reshape(
        n, g.out_height, g.out_width, g.kh, g.kw, g.in_channels
    )
    padded = np.zeros((n, g.height + 2 * g.pad, g.width + 2 * g.pad, g.in_channels), dy.dtype)
    rows, cols = g.out_height * g.stride, g.out_width * g.stride
    for ky in range(g.kh):
        for kx in range(g.kw):
            padded[:, ky : ky + rows : g.stride, kx : kx + cols : g.stride] += columns[
                :, :, :, ky, kx
            ]
    out[...] = padded[:, g.pad : g.pad + g.height, g.pad : g.pad + g.width]


def conv2d_backward_weights(
    x: NDArr, dy: NDArr, dw: NDArr, db: NDArr | None, g: Conv2DGeometry
) -> None:
    """Ops.conv2d_backward_weights."""
    flat = dy.reshape(-1, g.out_channels)
    np.matmul(_columns(x, g).T, flat, out=dw.reshape(-1, g.out_channels))
    if db is not None:
        flat.sum(axis=0, out=db)


def _windows(x: NDArr, k: int) -> NDArr:
    """(n, oh, ow, c, k * k): a copy with the elements of each window last, row by row."""
    n, height, width, channels = x.shape
    oh, ow = height // k, width // k
    cut = x[:, : oh * k, : ow * k].reshape(n, oh, k, ow, k, channels)
    return cut.transpose(0, 1, 3, 5, 2, 4).reshape(n, oh, ow, channels, k * k)


def maxpool2d_forward(x: NDArr, out: NDArr, k: int) -> None:
    """Ops.maxpool2d_forward."""
    _windows(x, k).max(axis=-1, out=out)


def maxpool2d_backward(dy: NDArr, x: NDArr, y: NDArr, out: NDArr, k: int, relu: bool) -> None:
    """Ops.maxpool2d_backward."""
    n, oh, ow, channels = y.shape
    spread = np.zeros((*y.shape, k * k), dy.dtype)
    source = dy * (y > 0) if relu else dy
    np.put_along_axis(spread, _windows(x, k).argmax(axis=-1)[..., None], source[..., None], axis=-1)
    out[...] = 0
    out[:, : oh * k, : ow * k] = (
        spread.reshape(n, oh, ow, channels, k, k)
        .transpose(0, 1, 4, 2, 5, 3)
        .reshape(n, oh * k, ow * k, channels)
    )


def softmax_cross_entropy(
    logits: NDArr,
    labels: NDArr,
    loss: NDArr,
    dlogits: NDArr,
    hit: NDArr,
    scale: float,
    smoothing: float,
) -> None:
    """Ops.softmax_cross_entropy."""
    rows, real, counted = np.arange(len(labels)), logits.dtype.type, labels >= 0
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    target = np.full_like(logits, smoothing / logits.shape[1])
    target[rows, np.maximum(labels, 0)] += real(1 - smoothing)
    loss[...] = np.where(counted, np.log(total[:, 0]) - (target * shifted).sum(axis=1), 0)
    hit[...] = counted & (logits.argmax(axis=1) == labels)
    dlogits[...] = np.where(counted[:, None], (np.exp(shifted) / total - target) * real(scale), 0)


def sgd_step(
    p: NDArr, g: NDArr, v: NDArr, lr: float, momentum: float, weight_decay: float, nesterov: bool
) -> None:
    """Ops.sgd_step."""
    real = p.dtype.type
    grad = g + real(weight_decay) * p
    v *= real(momentum)
    v += grad
    p -= real(lr) * (grad + real(momentum) * v if nesterov else v)
