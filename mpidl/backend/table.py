"""The table of kernels that the backends call by name: one line each, the same arguments in C, in CUDA and in plain NumPy.

An argument is `name:kind`, an array also `name:kind(size)`. Kinds: p, i, u, d an array of REAL, int64, uint8, float64; a an
array of the type that REAL is summed in: float32 where REAL has 16 bits, else the same; s a view with strides that the kernel
is told; n a size; r a number of the type of sums; e a double; f a flag or small code. A question mark behind the kind: may be
None, a null pointer. size: how many elements the array has, a product (with *) of sizes among the arguments and of numbers;
without it the caller answers for it. `mpidl.backend.binder` checks all of this in every call.

How a GPU covers the work, by numbers of arguments: ("each", a, b, ...) a grid-stride loop over the product of those arguments;
("warps", a, ...) one warp a row; ("groups", a, b, c) one block for 8 of the c rows of each of a * b matrices; ("blocks", a) one
block an item; ("columns", c, s) 32 columns by 8 rows a block, and segments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

ARRAYS = "apiuds"  # kinds of arguments that are arrays
_ARGUMENT = re.compile(r"(\w+):([apiudsnref])(\?)?(?:\(([\w*]+)\))?")


@dataclass(frozen=True)
class Argument:
    """factors: the size of an array: indices of arguments (from 0), and numbers (negative); None where it is not checked."""

    name: str
    kind: str
    optional: bool
    factors: tuple[int, ...] | None


@dataclass(frozen=True)
class Kernel:
    """family: the file in kernels/cpu and kernels/cuda; signature, launch: see above."""

    family: str
    signature: str
    launch: tuple[str | int, ...] = ()

    @cached_property
    def parsed(self) -> tuple[Argument, ...]:
        """The signature."""
        texts = [_ARGUMENT.fullmatch(text) for text in self.signature.split()]
        found = [match.groups() for match in texts if match is not None]
        if len(found) != len(texts):
            raise ValueError(f"cannot understand {self.signature!r}")
        places = {name: index for index, (name, *_) in enumerate(found)}
        return tuple(
            Argument(name, kind, bool(optional), None if size is None else _factors(size, places))
            for name, kind, optional, size in found
        )

    @cached_property
    def arguments(self) -> str:
        """The kinds, one letter each."""
        return "".join(argument.kind for argument in self.parsed)


def _factors(size: str, places: dict[str, int]) -> tuple[int, ...]:
    return tuple(-int(factor) if factor.isdigit() else places[factor] for factor in size.split("*"))


_SIZES = "n:n d:n h:n w:n channels:n first:n c:n kd:n kh:n kw:n sd:n sh:n sw:n pd:n ph:n pw:n dd:n dh:n dw:n od:n oh:n ow:n"
_IMAGE, _COLUMN = "n*d*h*w*channels", "n*od*oh*ow*kd*kh*kw*c"
_POOL = "n:n h:n w:n c:n k:n stride:n pad:n oh:n ow:n"
_HEADS = "n:n heads:n tq:n tk:n dim:n q_stride:n kv_stride:n scale:r causal:f"
_MOMENTS = "p:p(n) g:p(n) m:p(n) v:p(n)"
_CONV = "n:n h:n w:n ci:n co:n kh:n kw:n stride:n pad:n oh:n ow:n"
_X, _Y, _W = "n*h*w*ci", "n*oh*ow*co", "kh*kw*ci*co"

KERNELS: dict[str, Kernel] = {
    "act_forward": Kernel("activation", "x:p(n) out:p(n) n:n kind:f", ("each", 2)),
    "act_backward": Kernel("activation", "dy:p(n) x:p(n) y:p(n) out:p(n) n:n kind:f", ("each", 4)),
    "round_copy": Kernel("pointwise", "x:a(n) out:p(n) n:n", ("each", 2)),
    "dropout": Kernel("activation", "x:p(n) out:p(n) n:n keep:e drawn:i(3) stream:n", ("each", 2)),
    "row_norm_forward": Kernel(
        "norm",
        "x:p(rows*cols) gamma:a(cols) beta:a?(cols) out:p(rows*cols) mean:a(rows) rstd:a(rows) rows:n cols:n eps:r center:f",
        ("warps", 6),
    ),
    "row_norm_backward": Kernel(
        "norm",
        "dy:p(rows*cols) x:p(rows*cols) gamma:a(cols) mean:a(rows) rstd:a(rows) out:p(rows*cols) rows:n cols:n center:f",
        ("warps", 6),
    ),
    "row_norm_parameters": Kernel(
        "norm",
        "dy:p(rows*cols) x:p(rows*cols) mean:a(rows) rstd:a(rows) dgamma:a(cols) dbeta:a?(cols) rows:n cols:n",
        ("columns", 7),
    ),
    "segment_moments": Kernel(
        "norm",
        "x:p(parts*rows*cols) mean:a(parts*cols) m2:a(parts*cols) parts:n rows:n cols:n",
        ("columns", 5, 3),
    ),
    "segment_affine": Kernel(
        "norm",
        "x:p(parts*rows*cols) scale:a(parts*cols) shift:a(parts*cols) residual:p?(parts*rows*cols) out:p(parts*rows*cols) "
        "parts:n rows:n cols:n relu:f",
        ("each", 5, 6, 7),
    ),
    "segment_dots": Kernel(
        "norm",
        "dy:p(parts*rows*cols) x:p(parts*rows*cols) y:p?(parts*rows*cols) mean:a(parts*cols) sum_dy:a(parts*cols) "
        "sum_dyx:a(parts*cols) parts:n rows:n cols:n",
        ("columns", 8, 6),
    ),
    "segment_dx": Kernel(
        "norm",
        "dy:p(parts*rows*cols) x:p(parts*rows*cols) a:a(parts*cols) b:a(parts*cols) c:a(parts*cols) out:p(parts*rows*cols) "
        "parts:n rows:n cols:n",
        ("each", 6, 7, 8),
    ),
    "softmax_forward": Kernel(
        "softmax", "x:p(rows*cols) out:p(rows*cols) rows:n cols:n log:f", ("warps", 2)
    ),
    "softmax_backward": Kernel(
        "softmax",
        "dy:p(rows*cols) y:p(rows*cols) out:p(rows*cols) rows:n cols:n log:f",
        ("warps", 3),
    ),
    "pair_loss": Kernel(
        "softmax",
        "x:p(rows*cols) target:a(rows*cols) loss:a(rows) dx:p(rows*cols) rows:n cols:n scale:r kind:f delta:r",
        ("warps", 4),
    ),
    "embedding_forward": Kernel(
        "embedding", "table:p ids:i(count) out:p(count*width) count:n width:n", ("each", 3, 4)
    ),
    "embedding_backward": Kernel(
        "embedding", "dy:p(count*width) ids:i(count) dtable:a count:n width:n", ("each", 3, 4)
    ),
    "attention_forward": Kernel(
        "attention",
        f"q:s k:s v:s out:p(n*tq*heads*dim) lse:a(n*heads*tq) {_HEADS}",
        ("groups", 5, 6, 7),
    ),
    "attention_backward": Kernel(
        "attention",
        f"dout:p(n*tq*heads*dim) q:s k:s v:s out:p(n*tq*heads*dim) lse:a(n*heads*tq) dq:s dk:s dv:s {_HEADS}",
    ),
    "attention_backward_q": Kernel(
        "attention",
        f"dout:p(n*tq*heads*dim) q:s k:s v:s out:p(n*tq*heads*dim) lse:a(n*heads*tq) dq:s {_HEADS}",
        ("groups", 7, 8, 9),
    ),
    "attention_backward_kv": Kernel(
        "attention",
        f"dout:p(n*tq*heads*dim) q:s k:s v:s out:p(n*tq*heads*dim) lse:a(n*heads*tq) dk:s dv:s {_HEADS}",
        ("groups", 8, 9, 11),
    ),
    "lstm_forward": Kernel(
        "recurrent",
        "gates:p(4*rows*units) c_before:a(rows*units) c:a(rows*units) h:p(rows*units) rows:n units:n",
        ("each", 4, 5),
    ),
    "lstm_backward": Kernel(
        "recurrent",
        "gates:p(4*rows*units) c_before:a(rows*units) c:a(rows*units) dh:p(rows*units) dc:a(rows*units) rows:n units:n",
        ("each", 5, 6),
    ),
    "gru_forward": Kernel(
        "recurrent",
        "x_gates:p(3*rows*units) h_gates:p(3*rows*units) h_before:p(rows*units) h:p(rows*units) rows:n units:n",
        ("each", 4, 5),
    ),
    "gru_backward": Kernel(
        "recurrent",
        "x_gates:p(3*rows*units) h_gates:p(3*rows*units) h_before:p(rows*units) dh:p(rows*units) rows:n units:n",
        ("each", 4, 5),
    ),
    "im2col": Kernel(
        "columns",
        f"x:p({_IMAGE}) columns:p({_COLUMN}) {_SIZES}",
        ("each", 2, 21, 22, 23, 9, 10, 11, 8),
    ),
    "col2im": Kernel(
        "columns", f"columns:p({_COLUMN}) out:p({_IMAGE}) {_SIZES}", ("each", 2, 3, 4, 5, 8)
    ),
    "maxpool_forward": Kernel(
        "pooling",
        f"x:p(n*h*w*c) out:p(n*oh*ow*c) place:i(n*oh*ow*c) {_POOL}",
        ("each", 3, 6, 10, 11),
    ),
    "maxpool_backward": Kernel(
        "pooling",
        f"dy:p(n*oh*ow*c) place:i(n*oh*ow*c) out:p(n*h*w*c) {_POOL}",
        ("each", 3, 4, 5, 6),
    ),
    "avgpool_forward": Kernel(
        "pooling", f"x:p(n*h*w*c) out:p(n*oh*ow*c) {_POOL}", ("each", 2, 5, 9, 10)
    ),
    "avgpool_backward": Kernel(
        "pooling", f"dy:p(n*oh*ow*c) out:p(n*h*w*c) {_POOL}", ("each", 2, 3, 4, 5)
    ),
    "adam_step": Kernel(
        "optim",
        f"{_MOMENTS} n:n lr:r beta1:r beta2:r eps:r weight_decay:r fix1:r fix2:r decoupled:f",
        ("each", 4),
    ),
    "adam_direction": Kernel(
        "optim",
        f"{_MOMENTS} out:p(n) n:n beta1:r beta2:r eps:r weight_decay:r fix1:r fix2:r",
        ("each", 5),
    ),
    "sparse_sgd": Kernel("optim", "p:p(n) g:p(n) n:n lr:r", ("each", 2)),
    "slot_squares": Kernel(
        "optim", "x:p starts:i(slots) stops:i(slots) out:d(slots) slots:n", ("blocks", 4)
    ),
    "slot_scale": Kernel(
        "optim", "x:p starts:i(slots) stops:i(slots) factors:d(slots) slots:n", ("blocks", 4)
    ),
    "int8_pack": Kernel(
        "compress", "x:p(n) scales:a(blocks) q:u(n) n:n block:n blocks:n seed:n", ("blocks", 5)
    ),
    "int8_unpack": Kernel("compress", "scales:a q:u(n) y:p(n) n:n block:n sign:f", ("each", 3)),
    "sign_pack": Kernel(
        "compress", "x:p(n) scales:a(blocks) bits:u n:n block:n blocks:n", ("warps", 5)
    ),
    "sign_unpack": Kernel("compress", "scales:a bits:u y:p(n) n:n block:n sign:f", ("each", 3)),
    "add_and_keep": Kernel("compress", "values:p(n) residual:p(n) n:n", ("each", 2)),
    "topk_count": Kernel("compress", "x:p(n) counts:i n:n", ("each", 2)),
    "topk_select": Kernel("compress", "x:p(n) places:i found:i(1) n:n least:n", ("each", 3)),
    "scatter_add": Kernel(
        "compress", "places:i(count) values:a(count) y:p count:n sign:f", ("each", 3)
    ),
}
# C has these in one piece, in a form of its own (compression: kernels/cpu/compress.c), or not at all: round_copy
ONLY_CUDA = frozenset({"attention_backward_q", "attention_backward_kv", "round_copy"}) | {
    name for name, kernel in KERNELS.items() if kernel.family == "compress"
}
ONLY_C = frozenset({"attention_backward"})
# What `NumpyOps` calls in C by methods of their own, which take fast ways; `CupyOps` does these with products and columns, or
# with kernels of the same arrays and sizes in another order, which are checked by these lines too
C_KERNELS: dict[str, Kernel] = {
    "bias_act": Kernel("pointwise", "y:p(rows*cols) bias:a(cols) rows:n cols:n relu:f"),
    "relu_forward": Kernel("pointwise", "x:p(n) out:p(n) n:n"),
    "relu_backward": Kernel("pointwise", "dy:p(n) y:p(n) out:p(n) n:n"),
    "column_sums": Kernel("pointwise", "x:p(rows*cols) out:a(cols) rows:n cols:n"),
    "scale_u8": Kernel("pointwise", "x:u(n) out:p(n) n:n scale:e shift:e"),
    "conv2d_forward": Kernel("conv2d", f"x:p({_X}) w:p({_W}) b:p?(co) out:p({_Y}) {_CONV} relu:f"),
    "conv2d_backward_input": Kernel("conv2d", f"dy:p({_Y}) w:p({_W}) out:p({_X}) {_CONV}"),
    "conv2d_backward_weights": Kernel(
        "conv2d", f"x:p({_X}) dy:p({_Y}) dw:p({_W}) db:p?(co) {_CONV}"
    ),
    "maxpool2d_forward": Kernel("pool2d", "x:p(n*h*w*c) out:p n:n h:n w:n c:n k:n"),
    "maxpool2d_backward": Kernel(
        "pool2d", "dy:p x:p(n*h*w*c) y:p out:p(n*h*w*c) n:n h:n w:n c:n k:n relu:f"
    ),
    "softmax_cross_entropy": Kernel(
        "loss",
        "logits:p(rows*classes) labels:i(rows) loss:a(rows) dlogits:p(rows*classes) hit:u(rows) rows:n classes:n scale:e "
        "smoothing:e",
    ),
    "gemm": Kernel(
        "gemm",
        "a:s a0:n a1:n b:s b0:n b1:n out:s c0:n c1:n bias:p?(cols) rows:n cols:n k:n relu:f accumulate:f",
    ),
    "sgd_step": Kernel(
        "optim", "p:p(n) g:p(n) v:p(n) n:n lr:e momentum:e weight_decay:e nesterov:f"
    ),
}
