"""A case for every kernel of the table: arguments of drawn shapes, as the signature has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings

from mpidl.backend.table import KERNELS
from tests.backend import augment_arguments as augment
from tests.backend.arguments import (
    act,
    act_back,
    adam,
    affine,
    attention,
    attention_back,
    cached,
    class_shares,
    columns,
    conv2d,
    conv2d_input,
    conv2d_weights,
    cross_entropy,
    dots,
    half,
    int8_values,
    maxpool,
    maxpool_back,
    normal,
    packet,
    pool,
    residual,
    row_norm,
    row_norm_back,
    row_norm_parameters,
    sign_codes,
    sign_values,
    slots,
    softmax_back,
    tiles,
    tiles_back,
    unpacked,
    widened,
)

FEW = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Args = list[Any]
Case = Callable[[np.random.Generator, int, int, int], Args]

CASES: dict[str, Case] = {
    "bias_act": lambda g, n, m, k: [normal(g, n, m), normal(g, m), n, m, k % 2],
    "relu_forward": lambda g, n, m, k: [normal(g, n, m), normal(g, n, m), n * m],
    "relu_backward": lambda g, n, m, k: [*(normal(g, n, m) for _ in range(3)), n * m],
    "column_sums": lambda g, n, m, k: [normal(g, n, m), normal(g, m), n, m],
    "scale_u8": lambda g, n, m, k: [
        g.integers(0, 256, (n, m)).astype(np.uint8),
        normal(g, n, m),
        n * m,
        1 / 255,
        -0.5,
    ],
    "softmax_cross_entropy": cross_entropy,
    "softmax_cross_entropy_shares": class_shares,
    "sgd_step": lambda g, n, m, k: [*adam(g, n, m, k)[:3], n * m, 0.1, 0.9, 0.01, k % 2],
    "act_forward": act,
    "act_backward": act_back,
    "dropout": lambda g, n, m, k: [
        normal(g, n, m),
        normal(g, n, m),
        n * m,
        [0.5, 0.9, 1.0][k % 3],
        np.array([7 << 33 | 5, n, m]),
        k,
    ],
    "row_norm_forward": row_norm,
    "row_norm_backward": row_norm_back,
    "row_norm_parameters": row_norm_parameters,
    "segment_moments": lambda g, n, m, k: [
        normal(g, k, n, m) + 3,
        normal(g, k, m),
        normal(g, k, m),
        k,
        n,
        m,
    ],
    "segment_affine": affine,
    "segment_dots": dots,
    "segment_dx": lambda g, n, m, k: [
        normal(g, k, n, m),
        normal(g, k, n, m),
        *(normal(g, k, m) for _ in range(3)),
        normal(g, k, n, m),
        k,
        n,
        m,
    ],
    "softmax_forward": lambda g, n, m, k: [normal(g, n, m) * 5, normal(g, n, m), n, m, k % 2],
    "softmax_backward": softmax_back,
    "pair_loss": lambda g, n, m, k: [
        normal(g, n, m),
        g.random((n, m)),
        normal(g, n),
        normal(g, n, m),
        n,
        m,
        0.5,
        k % 5,
        0.7,
    ],
    "embedding_forward": lambda g, n, m, k: [
        normal(g, 9, m),
        g.integers(0, 9, n),
        normal(g, n, m),
        n,
        m,
    ],
    "embedding_backward": lambda g, n, m, k: [
        normal(g, n, m),
        g.integers(0, 9, n),
        normal(g, 9, m),
        n,
        m,
    ],
    "attention_forward": attention,
    "attention_backward": attention_back,
    "cached_attention": cached,
    "lstm_forward": lambda g, n, m, k: [
        normal(g, n, 4 * m),
        *(normal(g, n, m) for _ in range(3)),
        n,
        m,
    ],
    "lstm_backward": lambda g, n, m, k: [
        g.random((n, 4 * m)),
        *(normal(g, n, m) for _ in range(4)),
        n,
        m,
    ],
    "gru_forward": lambda g, n, m, k: [
        normal(g, n, 3 * m),
        normal(g, n, 3 * m),
        normal(g, n, m),
        normal(g, n, m),
        n,
        m,
    ],
    "gru_backward": lambda g, n, m, k: [
        g.random((n, 3 * m)),
        normal(g, n, 3 * m),
        normal(g, n, m),
        normal(g, n, m),
        n,
        m,
    ],
    "im2col": columns,
    "col2im": lambda g, n, m, k: [*reversed((a := columns(g, n, m, k))[:2]), *a[2:]],
    "maxpool_forward": maxpool,
    "maxpool_backward": maxpool_back,
    "avgpool_forward": lambda g, n, m, k: [*pool(g, n, m, k)],
    "avgpool_backward": lambda g, n, m, k: [(a := pool(g, n, m, k))[1], a[0], a[2]],
    "maxpool2d_forward": tiles,
    "maxpool2d_backward": tiles_back,
    "conv2d_forward": lambda g, n, m, k: [*conv2d(g, n, m, k), m % 3 % 2],
    "conv2d_backward_input": conv2d_input,
    "conv2d_backward_weights": conv2d_weights,
    "augment_gather": augment.gather,
    "augment_gather_u8": augment.gather_u8,
    "augment_vectors": augment.vectors,
    "augment_cutout": augment.cutout,
    "augment_jitter": augment.jitter,
    "augment_noise": augment.noise,
    "augment_mixup": augment.mixup,
    "augment_cutmix": augment.cutmix,
    "adam_step": adam,
    "adam_direction": lambda g, n, m, k: [
        *(a := adam(g, n, m, k))[:4],
        normal(g, n * m),
        n * m,
        *a[6:12],
    ],
    "sparse_sgd": lambda g, n, m, k: [
        normal(g, n * m),
        normal(g, n * m) * (g.random(n * m) < 0.05),
        n * m,
        0.1,
    ],
    "slot_squares": slots,
    "slot_scale": slots,
    "int8_unpack": int8_values,
    "sign_pack": sign_codes,
    "sign_unpack": sign_values,
    "add_and_keep": residual,
    "topk_pack": packet,
    "topk_unpack": unpacked,
    "half_pack": half,
    "half_unpack": widened,
}


# What the reference draws or breaks ties by differs: tests/backend/test_compress.py
FREE = {"int8_pack", "topk", "topk_feedback"}
PACKED = {name for name, kernel in KERNELS.items() if kernel.family == "compress"}
