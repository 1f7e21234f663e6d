"""The table of kernels that the backends call by name: one line each, the same arguments in C, in CUDA and in plain NumPy.

Arguments, one letter each: p, i, u, d an array of REAL, int64, uint8, float64 (None for p and a: a null pointer); a an array of
the type that REAL is summed in: float32 where REAL has 16 bits, else the same; s a view with strides that the kernel is told;
n a size; r a number of the type of sums; e a double; f a flag or small code.
How a GPU covers the work: ("each", a, b, ...) a grid-stride loop over the product of those arguments; ("warps", a, ...)
one warp a row; ("groups", a, b, c) one block for 8 of the c
rows of each of a * b matrices; ("blocks", a) one block an item; ("columns", c, s) 32 columns by 8 rows a block, and segments.
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
    "dropout": Kernel("activation", "ppnein", ("each", 2)),
    "row_norm_forward": Kernel("norm", "paapaannrf", ("warps", 6)),
    "row_norm_backward": Kernel("norm", "ppaaapnnf", ("warps", 6)),
    "row_norm_parameters": Kernel("norm", "ppaaaann", ("columns", 7)),
    "segment_moments": Kernel("norm", "paannn", ("columns", 5, 3)),
    "segment_affine": Kernel("norm", "paappnnnf", ("each", 5, 6, 7)),
    "segment_dots": Kernel("norm", "pppaaannn", ("columns", 8, 6)),
    "segment_dx": Kernel("norm", "ppaaapnnn", ("each", 6, 7, 8)),
    "softmax_forward": Kernel("softmax", "ppnnf", ("warps", 2)),
    "softmax_backward": Kernel("softmax", "pppnnf", ("warps", 3)),
    "pair_loss": Kernel("softmax", "paapnnrfr", ("warps", 4)),
    "embedding_forward": Kernel("embedding", "pipnn", ("each", 3, 4)),
    "embedding_backward": Kernel("embedding", "piann", ("each", 3, 4)),
    "attention_forward": Kernel("attention", "ssspa" + "n" * 7 + "rf", ("groups", 5, 6, 7)),
    "attention_backward": Kernel("attention", "pssspa" + "sss" + "n" * 7 + "rf", ()),
    "attention_backward_q": Kernel("attention", "pssspa" + "s" + "n" * 7 + "rf", ("groups", 7, 8, 9)),
    "attention_backward_kv": Kernel("attention", "pssspa" + "ss" + "n" * 7 + "rf", ("groups", 8, 9, 11)),
    "lstm_forward": Kernel("recurrent", "paapnn", ("each", 4, 5)),
    "lstm_backward": Kernel("recurrent", "paapann", ("each", 5, 6)),
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
    "sparse_sgd": Kernel("optim", "ppnr", ("each", 2)),
    "slot_squares": Kernel("optim", "piidn", ("blocks", 4)),
    "slot_scale": Kernel("optim", "piidn", ("blocks", 4)),
    "int8_pack": Kernel("compress", "paunnnn", ("blocks", 5)),
    "int8_unpack": Kernel("compress", "aupnnf", ("each", 3)),
    "sign_pack": Kernel("compress", "paunnn", ("warps", 5)),
    "sign_unpack": Kernel("compress", "aupnnf", ("each", 3)),
    "add_and_keep": Kernel("compress", "ppn", ("each", 2)),
    "topk_count": Kernel("compress", "pin", ("each", 2)),
    "topk_select": Kernel("compress", "piinn", ("each", 3)),
    "scatter_add": Kernel("compress", "iapnf", ("each", 3)),
}
# C has these in one piece or, for compression, in a form of its own (kernels/cpu/compress.c)
ONLY_CUDA = frozenset({"attention_backward_q", "attention_backward_kv"}) | {
    name for name, kernel in KERNELS.items() if kernel.family == "compress"
}
ONLY_C = frozenset({"attention_backward"})
