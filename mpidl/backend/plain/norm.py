"""Normalization."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NDArr = NDArray[Any]


def row_norm_forward(
    x: NDArr,
    gamma: NDArr,
    beta: NDArr | None,
    y: NDArr,
    mean: NDArr,
    rstd: NDArr,
    rows: int,
    cols: int,
    eps: float,
    center: int,
) -> None:
    """NormOps.row_norm_forward."""
    mean[...] = x.mean(axis=1) if center else 0
    rstd[...] = 1 / np.sqrt(((x - mean[:, None]) ** 2).mean(axis=1) + eps)
    y[...] = (x - mean[:, None]) * rstd[:, None] * gamma + (0 if beta is None else beta)


def row_norm_backward(
    dy: NDArr,
    x: NDArr,
    gamma: NDArr,
    mean: NDArr,
    rstd: NDArr,
    dx: NDArr,
    rows: int,
    cols: int,
    center: int,
) -> None:
    """NormOps.row_norm_backward."""
    w, unit = dy * gamma, (x - mean[:, None]) * rstd[:, None]
    plain = w.mean(axis=1, keepdims=True) if center else 0
    dx[...] = rstd[:, None] * (w - plain - unit * (w * unit).mean(axis=1, keepdims=True))


def row_norm_parameters(
    dy: NDArr,
    x: NDArr,
    mean: NDArr,
    rstd: NDArr,
    dgamma: NDArr,
    dbeta: NDArr | None,
    rows: int,
    cols: int,
) -> None:
    """NormOps.row_norm_parameters."""
    dgamma[...] = (dy * (x - mean[:, None]) * rstd[:, None]).sum(axis=0)
    if dbeta is not None:
        dbeta[...] = dy.sum(axis=0)


def segment_moments(x: NDArr, mean: NDArr, m2: NDArr, segments: int, rows: int, cols: int) -> None:
    """NormOps.segment_moments."""
    mean[...] = x.sum(axis=1) / max(rows, 1)
    m2[...] = ((x - mean[:, None]) ** 2).sum(axis=1)


def segment_affine(
    x: NDArr,
    scale: NDArr,
    shift: NDArr,
    residual: NDArr | None,
    y: NDArr,
    segments: int,
    rows: int,
    cols: int,
    relu: int,
) -> None:
    """NormOps.segment_affine."""
    result = x * scale[:, None] + shift[:, None]
    if residual is not None:
        result = result + residual.reshape(result.shape)
    y.reshape(result.shape)[...] = np.maximum(result, 0) if relu else result


def segment_dots(
    dy: NDArr,
    x: NDArr,
    y: NDArr | None,
    mean: NDArr,
    sum_dy: NDArr,
    sum_dyx: NDArr,
    segments: int,
    rows: int,
    cols: int,
) -> None:
    """NormOps.segment_dots."""
    if y is not None:
        dy[...] = np.where(y.reshape(dy.shape) > 0, dy, 0)
    sum_dy[...] = dy.sum(axis=1)
    sum_dyx[...] = (dy * (x - mean[:, None])).sum(axis=1)


def segment_dx(
    dy: NDArr,
    x: NDArr,
    a: NDArr,
    b: NDArr,
    c: NDArr,
    dx: NDArr,
    segments: int,
    rows: int,
    cols: int,
) -> None:
    """NormOps.segment_dx."""
    dx[...] = a[:, None] * dy + b[:, None] * x + c[:, None]
