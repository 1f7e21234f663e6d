"""Embeddings, attention, recurrent cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend.plain.int8 import quantize_rows
from mpidl.backend.plain.pointwise import _sigmoid

NDArr = NDArray[Any]


def embedding_forward(table: NDArr, ids: NDArr, y: NDArr, count: int, width: int) -> None:
    """SequenceOps.embedding_forward."""
    np.take(table, ids.reshape(-1), axis=0, out=y.reshape(count, width))


def embedding_backward(dy: NDArr, ids: NDArr, dtable: NDArr, count: int, width: int) -> None:
    """SequenceOps.embedding_backward."""
    np.add.at(dtable, ids.reshape(-1), dy.reshape(count, width))


def _scores(q: NDArr, k: NDArr, scale: float, causal: int) -> NDArr:
    scores: NDArr = np.einsum("nqhd,nkhd->nhqk", q, k) * scale
    if causal:
        tq, tk = scores.shape[2:]
        scores[:, :, np.arange(tk)[None, :] > np.arange(tq)[:, None] + tk - tq] = -np.inf
    return scores


def attention_forward(q: NDArr, k: NDArr, v: NDArr, out: NDArr, lse: NDArr, *rest: Any) -> None:
    """SequenceOps.attention_forward."""
    scores = _scores(q, k, *rest[-2:])
    if scores.size:
        top = scores.max(axis=-1)
        lse[...] = top + np.log(np.exp(scores - top[..., None]).sum(axis=-1))
        out[...] = np.einsum("nhqk,nkhd->nqhd", np.exp(scores - lse[..., None]), v)


def cached_attention(
    q: NDArr,
    keys: NDArr,
    values: NDArr,
    out: NDArr,
    table: NDArr,
    owner: NDArr,
    visible: NDArr,
    *rest: Any,
) -> None:
    """SequenceOps.cached_attention."""
    tokens, slots, heads, dim, rows, columns, block, scale = rest
    q, out = q.reshape(tokens, heads, dim), out.reshape(tokens, heads, dim)
    keys, values = (array.reshape(slots, heads, dim) for array in (keys, values))
    table = table.reshape(rows, columns)
    out[...] = 0
    for t in range(tokens):
        c = np.arange(visible[t])
        if not len(c):
            continue
        at = table[owner[t], c // block] * block + c % block
        scores = np.einsum("hd,chd->hc", q[t], keys[at]) * scale
        part = np.exp(scores - scores.max(axis=-1, keepdims=True))
        part /= part.sum(axis=-1, keepdims=True)
        out[t] = np.einsum("hc,chd->hd", part, values[at])


def cached_attention_int8(
    q: NDArr,
    keys: NDArr,
    key_steps: NDArr,
    values: NDArr,
    value_steps: NDArr,
    *rest: Any,
) -> None:
    """SequenceOps.cached_attention, of int8."""
    wide = [
        held.reshape(*steps.shape, -1) * steps.astype(q.dtype)[..., None]
        for held, steps in ((keys, key_steps), (values, value_steps))
    ]
    cached_attention(q, *wide, *rest)


def cache_int8(
    x: NDArr,
    at: NDArr,
    keys: NDArr,
    key_steps: NDArr,
    values: NDArr,
    value_steps: NDArr,
    *rest: int,
) -> None:
    """SequenceOps.cache_int8."""
    tokens, slots, heads, dim = rest
    parts = x.reshape(tokens, 3, heads * dim)
    for part, held, steps in ((1, keys, key_steps), (2, values, value_steps)):
        numbers, scale = quantize_rows(parts[:, part].reshape(tokens * heads, dim))
        held.reshape(slots, heads, dim)[at] = numbers.reshape(tokens, heads, dim)
        steps.reshape(slots, heads)[at] = scale.reshape(tokens, heads)


def attention_backward(
    dout: NDArr,
    q: NDArr,
    k: NDArr,
    v: NDArr,
    out: NDArr,
    lse: NDArr,
    dq: NDArr,
    dk: NDArr,
    dv: NDArr,
    *rest: Any,
) -> None:
    """SequenceOps.attention_backward."""
    scale = rest[-2]
    p = np.exp(_scores(q, k, *rest[-2:]) - lse[..., None])
    dv[...] = np.einsum("nhqk,nqhd->nkhd", p, dout)
    along = np.einsum("nqhd,nqhd->nhq", dout, out)
    ds = p * (np.einsum("nqhd,nkhd->nhqk", dout, v) - along[..., None]) * scale
    dq[...] = np.einsum("nhqk,nkhd->nqhd", ds, k)
    dk[...] = np.einsum("nhqk,nqhd->nkhd", ds, q)


def lstm_forward(gates: NDArr, c_before: NDArr, c: NDArr, h: NDArr, rows: int, hidden: int) -> None:
    """SequenceOps.lstm_forward."""
    i, f, g, o = (gates[:, k * hidden : (k + 1) * hidden] for k in range(4))
    i[...], f[...], g[...], o[...] = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o)
    c[...] = f * c_before + i * g
    h[...] = o * np.tanh(c)


def lstm_backward(
    gates: NDArr, c_before: NDArr, c: NDArr, dh: NDArr, dc: NDArr, rows: int, hidden: int
) -> None:
    """SequenceOps.lstm_backward."""
    i, f, g, o = (gates[:, k * hidden : (k + 1) * hidden].copy() for k in range(4))
    t = np.tanh(c)
    d = dc + dh * o * (1 - t * t)
    parts = (
        d * g * i * (1 - i),
        d * c_before * f * (1 - f),
        d * i * (1 - g * g),
        dh * t * o * (1 - o),
    )
    gates[...] = np.concatenate(parts, axis=1)
    dc[...] = d * f


def gru_forward(
    x_gates: NDArr, h_gates: NDArr, h_before: NDArr, h: NDArr, rows: int, hidden: int
) -> None:
    """SequenceOps.gru_forward."""
    (ar, az, an), (br, bz, bn) = (
        [g[:, k * hidden : (k + 1) * hidden] for k in range(3)] for g in (x_gates, h_gates)
    )
    ar[...], az[...] = _sigmoid(ar + br), _sigmoid(az + bz)
    an[...] = np.tanh(an + ar * bn)
    h[...] = (1 - az) * an + az * h_before


def gru_backward(
    x_gates: NDArr, h_gates: NDArr, h_before: NDArr, dh: NDArr, rows: int, hidden: int
) -> None:
    """SequenceOps.gru_backward."""
    r, z, new = (x_gates[:, k * hidden : (k + 1) * hidden].copy() for k in range(3))
    dn = dh * (1 - z) * (1 - new * new)
    dr, dz = dn * h_gates[:, 2 * hidden :] * r * (1 - r), dh * (h_before - new) * z * (1 - z)
    x_gates[...] = np.concatenate((dr, dz, dn), axis=1)
    h_gates[...] = np.concatenate((dr, dz, dn * r), axis=1)
    dh *= z
