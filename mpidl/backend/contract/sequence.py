"""What works on sequences: embeddings, attention, recurrent cells."""

from __future__ import annotations

from mpidl.backend.contract.base import Array, Launcher


class SequenceOps(Launcher):
    """Embedding, attention, LSTM and GRU cells."""

    def embedding_forward(self, table: Array, ids: Array, out: Array) -> None:
        """Out (count, width) = table (rows, width)[ids (count, int64)]."""
        self.launch("embedding_forward", table, ids, out, ids.size, table.shape[1])

    def embedding_backward(self, dy: Array, ids: Array, dtable: Array) -> None:
        """dtable[ids] += dy; on a GPU in any order."""
        self.launch("embedding_backward", dy, ids, dtable, ids.size, dtable.shape[1])

    def attention_forward(self, q: Array, k: Array, v: Array, out: Array, lse: Array, *, scale: float, causal: bool) -> None:
        """Out = softmax(scale q k^T) v for each sample and head (Vaswani et al., 2017).

        q, out: (n, tq, heads, dim); k, v: (n, tk, heads, dim). q, k, v may be views whose last two axes are contiguous and
        whose tokens are evenly spaced. lse (n, heads, tq): logarithm of the sum of exponentials, for the gradient. causal:
        query t sees
        the keys up to t + tk - tq. On a GPU the scores never exist in memory; on a CPU those of a block of queries do.
        """
        self.launch("attention_forward", q, k, v, out, lse, *_extents(q, k), scale, int(causal))

    def attention_backward(
        self, dout: Array, q: Array, k: Array, v: Array, out: Array, lse: Array, dq: Array, dk: Array, dv: Array,
        *, scale: float, causal: bool,
    ) -> None:  # fmt: skip
        """Gradients of q, k and v, in the same layouts, overwritten."""
        self.launch("attention_backward", dout, q, k, v, out, lse, dq, dk, dv, *_extents(q, k), scale, int(causal))

    def lstm_forward(self, gates: Array, c_before: Array, c: Array, h: Array) -> None:
        """Gates (n, 4 hidden): i, f, g, o from pre-activations to activations; c, h (n, hidden) (Hochreiter and
        Schmidhuber, 1997)."""
        self.launch("lstm_forward", gates, c_before, c, h, *c.shape)

    def lstm_backward(self, gates: Array, c_before: Array, c: Array, dh: Array, dc: Array) -> None:
        """Gates become the gradients of the pre-activations, dc that of c_before."""
        self.launch("lstm_backward", gates, c_before, c, dh, dc, *c.shape)

    def gru_forward(self, x_gates: Array, h_gates: Array, h_before: Array, h: Array) -> None:
        """x_gates, h_gates (n, 3 hidden): r, z, n from input and state; x_gates become activations; h (n, hidden) (Cho et
        al., 2014)."""
        self.launch("gru_forward", x_gates, h_gates, h_before, h, *h.shape)

    def gru_backward(self, x_gates: Array, h_gates: Array, h_before: Array, dh: Array) -> None:
        """x_gates and h_gates become gradients of the pre-activations, dh the part of h_before's gradient past the gates."""
        self.launch("gru_backward", x_gates, h_gates, h_before, dh, *dh.shape)


def _extents(q: Array, k: Array) -> tuple[int, ...]:
    n, tq, heads, dim = q.shape
    return n, heads, tq, k.shape[1], dim, q.strides[1] // q.itemsize, k.strides[1] // k.itemsize
