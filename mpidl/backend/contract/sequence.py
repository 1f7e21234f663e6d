"""Operations on sequences: embeddings, attention, recurrent cells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpidl.backend.array import Array
from mpidl.backend.contract.base import Launcher
from mpidl.backend.headers import structs
from mpidl.errors import BackendError

MOST_CACHED = 256  # elements of a head: what a warp holds


class CacheView(NamedTuple):
    """Keys and values of one layer in blocks of tokens.

    Attributes:
        keys: (blocks, block, heads, dim).
        values: As keys.
        table: (sequences, columns) int64: the blocks of each sequence, in order.
        key_steps: (blocks, block, heads) float32, where keys and values are int8: the value of one
            step; None: they are numbers.
        value_steps: As key_steps.
    """

    keys: Array
    values: Array
    table: Array
    key_steps: Array | None = None
    value_steps: Array | None = None


class SequenceOps(Launcher):
    """Embedding, attention, LSTM and GRU cells."""

    def embedding_forward(self, table: Array, ids: Array, out: Array) -> None:
        """out (count, width) = table (rows, width)[ids (count, int64)]."""
        self.launch("embedding_forward", table, ids, out, ids.size, table.shape[1])

    def embedding_backward(self, dy: Array, ids: Array, dtable: Array) -> None:
        """dtable[ids] += dy; on a GPU in any order."""
        self.launch("embedding_backward", dy, ids, dtable, ids.size, dtable.shape[1])

    def attention_forward(
        self, q: Array, k: Array, v: Array, out: Array, lse: Array, *, scale: float, causal: bool
    ) -> None:
        """out = softmax(scale q k^T) v for each sample and head (Vaswani et al., 2017).

        On a GPU the scores never exist in memory; on a CPU those of a block of queries do.

        Args:
            q: (n, tq, heads, dim). q, k and v may be views whose last two axes are contiguous and
                whose tokens are evenly spaced.
            k: (n, tk, heads, dim).
            v: As k.
            out: As q, contiguous.
            lse: (n, heads, tq): logarithm of the sum of exponentials, for the gradient.
            scale: Factor of the scores.
            causal: Query t sees the keys up to t + tk - tq.

        Raises:
            BackendError: A shape or stride that the kernel would read wrongly, or heads with too
                many elements.
        """
        g = _geometry(self, {"q": q}, {"k": k, "v": v})
        self.launch("attention_forward", q, k, v, out, lse, g, scale, int(causal))

    def cached_attention(
        self, q: Array, cache: CacheView, out: Array, owner: Array, visible: Array, scale: float
    ) -> None:
        """Attention of tokens over the first tokens of their sequences, which lie in a cache.

        What a token gives depends on its own sequence alone, whatever else is in the batch.

        Args:
            q: (tokens, heads, dim) queries; dim is at most 256.
            cache: Keys and values, and where those of each sequence are.
            out: As q; zeros for a token that sees none.
            owner: (tokens,) int64, the row of `cache.table` of each token.
            visible: (tokens,) int64, how many tokens of its sequence each sees.
            scale: Factor of the scores.

        Raises:
            BackendError: Heads have too many elements.
        """
        tokens, heads, dim = q.shape
        if dim > MOST_CACHED:
            raise BackendError(
                f"heads have {dim} elements; a cache takes at most {MOST_CACHED}",
                where="attention",
                remedy="use a model with more heads",
            )
        slots, block = cache.keys.shape[0] * cache.keys.shape[1], cache.keys.shape[1]
        sizes = (tokens, slots, heads, dim, *cache.table.shape, block)
        places = (out, cache.table, owner, visible)
        if cache.key_steps is None:
            self.launch("cached_attention", q, cache.keys, cache.values, *places, *sizes, scale)
        else:
            held = (cache.keys, cache.key_steps, cache.values, cache.value_steps)
            self.launch("cached_attention_int8", q, *held, *places, *sizes, scale)

    def cache_int8(self, x: Array, at: Array, cache: CacheView) -> None:
        """Round keys and values of tokens to int8, each head of a token by its own step.

        Args:
            x: (tokens, 3, heads, dim): queries, keys and values.
            at: (tokens,) int64, where they go: block * tokens of a block + place in it.
            cache: Of int8.
        """
        tokens, _, heads, dim = x.shape
        slots = cache.keys.shape[0] * cache.keys.shape[1]
        held = (cache.keys, cache.key_steps, cache.values, cache.value_steps)
        self.launch("cache_int8", x, at, *held, tokens, slots, heads, dim)

    def attention_backward(
        self,
        dout: Array,
        q: Array,
        k: Array,
        v: Array,
        out: Array,
        lse: Array,
        dq: Array,
        dk: Array,
        dv: Array,
        *,
        scale: float,
        causal: bool,
    ) -> None:
        """dq, dk, dv = gradients of q, k and v, in the same layouts, overwritten."""
        g = _geometry(self, {"q": q, "dq": dq}, {"k": k, "v": v, "dk": dk, "dv": dv})
        arrays = (dout, q, k, v, out, lse, dq, dk, dv)
        self.launch("attention_backward", *arrays, g, scale, int(causal))

    def lstm_forward(self, gates: Array, c_before: Array, c: Array, h: Array) -> None:
        """An LSTM cell (Hochreiter and Schmidhuber, 1997).

        Args:
            gates: (n, 4 hidden): i, f, g, o, from pre-activations to activations, in place.
            c_before: (n, hidden), as the next two.
            c: Cell state, overwritten.
            h: Hidden state, overwritten.
        """
        self.launch("lstm_forward", gates, c_before, c, h, *c.shape)

    def lstm_backward(self, gates: Array, c_before: Array, c: Array, dh: Array, dc: Array) -> None:
        """Gradients in place: gates of the pre-activations, dc of c_before."""
        self.launch("lstm_backward", gates, c_before, c, dh, dc, *c.shape)

    def gru_forward(self, x_gates: Array, h_gates: Array, h_before: Array, h: Array) -> None:
        """A GRU cell (Cho et al., 2014).

        Args:
            x_gates: (n, 3 hidden): r, z, n from the input; become activations.
            h_gates: The same from the state.
            h_before: (n, hidden).
            h: (n, hidden), overwritten.
        """
        self.launch("gru_forward", x_gates, h_gates, h_before, h, *h.shape)

    def gru_backward(self, x_gates: Array, h_gates: Array, h_before: Array, dh: Array) -> None:
        """Gradients in place.

        x_gates and h_gates become those of the pre-activations, dh the part of h_before's gradient
        that skips the gates.
        """
        self.launch("gru_backward", x_gates, h_gates, h_before, dh, *dh.shape)


def _geometry(ops: Launcher, queries: dict[str, Array], keys: dict[str, Array]) -> NDArray[np.void]:
    """The `attention_geometry`. Raises BackendError for what the kernels would read wrongly."""
    q, k = queries["q"], keys["k"]
    n, tq, heads, dim = q.shape
    if ops.largest_head and dim > ops.largest_head:
        raise BackendError(
            f"heads of {dim} elements: on this backend they have at most {ops.largest_head}",
            where="attention",
            remedy="use more heads",
        )
    tk = k.shape[1]
    strides = _row_stride(queries, q.shape), _row_stride(keys, (n, tk, heads, dim))
    return np.array((n, heads, tq, tk, dim, *strides), structs()["attention_geometry"])


def _row_stride(arrays: dict[str, Array], shape: tuple[int, ...]) -> int:
    """Elements from one token to the next, the same in all of them."""
    n, tokens, heads, dim = shape
    found: set[int] = set()
    for name, array in arrays.items():
        item, strides = array.itemsize, array.strides
        row = (
            strides[1]
            if array.ndim == 4 and tokens > 1
            else heads * dim * item
            if n < 2
            else strides[0]
        )
        even = (
            array.shape == shape
            and (dim < 2 or strides[3] == item)
            and (heads < 2 or strides[2] == dim * item)
            and (n < 2 or strides[0] == tokens * row)
        )
        found.add(row // item)
        if (array.size and (not even or row % item or len(found) > 1)) or array.shape != shape:
            raise BackendError(
                f"{name} has shape {array.shape}, strides {array.strides}; the kernel takes "
                f"{shape} "
                f"with contiguous heads, and tokens as far apart in each of {', '.join(arrays)}",
                where="attention",
                remedy="copy it with ascontiguousarray(...)",
            )
    return next(iter(found))
