"""The table of kernels that the backends call by name: one line each, the same arguments in C, in CUDA and in plain NumPy.

Arguments, one letter each: p, i, u, d an array of REAL, int64, uint8, float64 (None for p: a null pointer); s a view with
strides that the kernel is told; n a size; r a number of type REAL; e a double; f a flag or small code.
How a GPU covers the work: ("each", a, b, ...) a grid-stride loop over the product of those arguments; ("warps", a, ...)
one warp a row; ("blocks", a) one block an item; ("columns", c, s) 32 columns by 8 rows a block, and segments.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """family: the file in kernels/cpu and kernels/cuda; launch: see above."""

    family: str
    arguments: str
    launch: tuple[str | int, ...]


_COLUMNS = "n" * 22
_POOL = "n" * 9
KERNELS: dict[str, Kernel] = {
    "act_forward": Kernel("activation", "ppnf", ("each", 2)),
    "act_backward": Kernel("activation", "ppppnf", ("each", 4)),
    "dropout": Kernel("activation", "ppnennn", ("each", 2)),
    "row_norm_forward": Kernel("norm", "ppppppnnrf", ("warps", 6)),
    "row_norm_backward": Kernel("norm", "ppppppnnf", ("warps", 6)),
    "row_norm_parameters": Kernel("norm", "ppppppnn", ("columns", 7)),
    "segment_moments": Kernel("norm", "pppnnn", ("columns", 5, 3)),
    "segment_affine": Kernel("norm", "pppppnnnf", ("each", 5, 6, 7)),
    "segment_dots": Kernel("norm", "ppppppnnn", ("columns", 8, 6)),
    "segment_dx": Kernel("norm", "ppppppnnn", ("each", 6, 7, 8)),
    "softmax_forward": Kernel("softmax", "ppnnf", ("warps", 2)),
    "softmax_backward": Kernel("softmax", "pppnnf", ("warps", 3)),
    "pair_loss": Kernel("softmax", "ppppnnrfr", ("warps", 4)),
    "embedding_forward": Kernel("embedding", "pipnn", ("each", 3, 4)),
    "embedding_backward": Kernel("embedding", "pipnn", ("each", 3, 4)),
    "attention_forward": Kernel("attention", "ssspp" + "n" * 7 + "rf", ("warps", 5, 6, 7)),
    "attention_backward": Kernel("attention", "pssspp" + "sss" + "n" * 7 + "rf", ()),
    "attention_backward_q": Kernel("attention", "pssspp" + "s" + "n" * 7 + "rf", ("warps", 7, 8, 9)),
    "attention_backward_kv": Kernel("attention", "pssspp" + "ss" + "n" * 7 + "rf", ("warps", 8, 9, 11)),
    "lstm_forward": Kernel("recurrent", "ppppnn", ("each", 4, 5)),
    "lstm_backward": Kernel("recurrent", "pppppnn", ("each", 5, 6)),
    "gru_forward": Kernel("recurrent", "ppppnn", ("each", 4, 5)),
    "gru_backward": Kernel("recurrent", "ppppnn", ("each", 4, 5)),
    "im2col": Kernel("columns", "pp" + _COLUMNS, ("each", 2, 21, 22, 23, 9, 10, 11, 8)),
    "col2im": Kernel("columns", "pp" + _COLUMNS, ("each", 2, 3, 4, 5, 8)),
    "maxpool_forward": Kernel("pooling", "ppi" + _POOL, ("each", 3, 6, 10, 11)),
    "maxpool_backward": Kernel("pooling", "pip" + _POOL, ("each", 3, 4, 5, 6)),
    "avgpool_forward": Kernel("pooling", "pp" + _POOL, ("each", 2, 5, 9, 10)),
    "avgpool_backward": Kernel("pooling", "pp" + _POOL, ("each", 2, 3, 4, 5)),
    "adam_step": Kernel("optim", "ppppn" + "r" * 7 + "f", ("each", 4)),
    "adam_direction": Kernel("optim", "pppppn" + "r" * 6, ("each", 5)),
    "slot_squares": Kernel("optim", "piidn", ("blocks", 4)),
    "slot_scale": Kernel("optim", "piidn", ("blocks", 4)),
}
# C has these in one piece or not at all
ONLY_CUDA = frozenset({"attention_backward_q", "attention_backward_kv"})
ONLY_C = frozenset({"attention_backward"})
