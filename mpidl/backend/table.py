"""The table of kernels: one line each, with the same arguments in C, in CUDA and in plain NumPy.

`mpidl.backend.signature` says how a line is written. `mpidl.backend.binder` checks every call by
it; the backends, their tests and kernels/README.md are made from it.
"""

from __future__ import annotations

from mpidl.backend.signature import (
    CUDA,
    PLAIN,
    C,
    Kernel,
    blocks,
    columns,
    each,
    groups,
    warps,
)

_IMAGE = "real(g.n*g.d*g.h*g.w*g.channels)"
_COLUMN = "real(g.n*g.od*g.oh*g.ow*g.kd*g.kh*g.kw*g.c)"
_X = "real(g.n*g.h*g.w*g.channels)"
_Y = "real(g.n*g.oh*g.ow*g.outputs)"
_W = "real(g.kh*g.kw*g.channels*g.outputs)"
_POOL_IN = "real(g.n*g.h*g.w*g.c)"
_POOL_OUT = "real(g.n*g.oh*g.ow*g.c)"
_HEADS = "g:attention_geometry scale:number causal:code"
_QUERIES = "real(g.n*g.tq*g.heads*g.dim)"
_LSE = "acc(g.n*g.heads*g.tq)"
_ATTENTION = f"dout:{_QUERIES} q:view k:view v:view out:{_QUERIES} lse:{_LSE}"
_BYTES = (
    "keys:int8(slots*heads*dim) key_steps:float32(slots*heads) values:int8(slots*heads*dim) "
    "value_steps:float32(slots*heads)"
)
_MOMENTS = "p:real(n) g:real(n) m:real(n) v:real(n)"
_ROWS = "real(rows*cols)"
_SEGMENTS = "real(parts*rows*cols)"
_STATISTIC = "acc(parts*cols)"
_CELLS = "real(rows*units)"
_STILL = "g.n*g.d*g.h*g.w*g.c"
_MOVED = "real(g.n*g.od*g.oh*g.ow*g.c)"
_DRAWN = "samples:int64(g.n) seed:size epoch:size g:augment_geometry"
_MOVE = f"out:{_MOVED} {_DRAWN} scale:number shift:number fill:number"
_MIX = "share:acc(n) table:int64(count) samples:int64(n) seed:size epoch:size"
_INT8 = "w:int8(panels*groups*32*4) base:int32(panels*32) scales:float32(panels*32)"
_INT8_DENSE = (
    f"x:float32(rows*k) {_INT8} bias:float32?(cols) out:float32(rows*cols) rows:size cols:size "
    "k:size panels:size groups:size relu:code"
)
_INT8_CONV = (
    f"x:float32({_STILL}) {_INT8} bias:float32?(g.outputs) "
    "out:float32(g.n*outs*g.outputs) g:conv_geometry panels:size groups:size pool:size outs:size "
    "relu:code"
)
_PIXELS = ("g.n", "g.od", "g.oh", "g.ow")

KERNELS: dict[str, Kernel] = {
    "bias_act": Kernel(
        "pointwise", f"y:{_ROWS} bias:acc(cols) rows:size cols:size relu:code", each("rows", "cols")
    ),
    "relu_forward": Kernel("pointwise", "x:real(n) out:real(n) n:size", each("n")),
    "relu_backward": Kernel("pointwise", "dy:real(n) y:real(n) out:real(n) n:size", each("n")),
    "column_sums": Kernel(
        "pointwise", f"x:{_ROWS} out:acc(cols) rows:size cols:size", columns("cols")
    ),
    "scale_u8": Kernel(
        "pointwise", "x:uint8(n) out:real(n) n:size scale:number shift:number", each("n")
    ),
    "round_copy": Kernel("pointwise", "x:acc(n) out:real(n) n:size", each("n"), (CUDA,)),
    "act_forward": Kernel("activation", "x:real(n) out:real(n) n:size kind:code", each("n")),
    "act_backward": Kernel(
        "activation", "dy:real(n) x:real(n) y:real(n) out:real(n) n:size kind:code", each("n")
    ),
    "dropout": Kernel(
        "activation",
        "x:real(n) out:real(n) n:size keep:double drawn:int64(3) stream:size",
        each("n"),
    ),
    "row_norm_forward": Kernel(
        "norm",
        f"x:{_ROWS} gamma:acc(cols) beta:acc?(cols) out:{_ROWS} mean:acc(rows) rstd:acc(rows) "
        "rows:size cols:size eps:number center:code",
        warps("rows"),
    ),
    "row_norm_backward": Kernel(
        "norm",
        f"dy:{_ROWS} x:{_ROWS} gamma:acc(cols) mean:acc(rows) rstd:acc(rows) out:{_ROWS} "
        "rows:size cols:size center:code",
        warps("rows"),
    ),
    "row_norm_parameters": Kernel(
        "norm",
        f"dy:{_ROWS} x:{_ROWS} mean:acc(rows) rstd:acc(rows) dgamma:acc(cols) dbeta:acc?(cols) "
        "rows:size cols:size",
        columns("cols"),
    ),
    "segment_moments": Kernel(
        "norm",
        f"x:{_SEGMENTS} mean:{_STATISTIC} m2:{_STATISTIC} parts:size rows:size cols:size",
        columns("cols", "parts"),
    ),
    "segment_affine": Kernel(
        "norm",
        f"x:{_SEGMENTS} scale:{_STATISTIC} shift:{_STATISTIC} residual:real?(parts*rows*cols) "
        f"out:{_SEGMENTS} parts:size rows:size cols:size relu:code",
        each("parts", "rows", "cols"),
    ),
    "segment_dots": Kernel(
        "norm",
        f"dy:{_SEGMENTS} x:{_SEGMENTS} y:real?(parts*rows*cols) mean:{_STATISTIC} "
        f"sum_dy:{_STATISTIC} sum_dyx:{_STATISTIC} parts:size rows:size cols:size",
        columns("cols", "parts"),
    ),
    "segment_dx": Kernel(
        "norm",
        f"dy:{_SEGMENTS} x:{_SEGMENTS} a:{_STATISTIC} b:{_STATISTIC} c:{_STATISTIC} "
        f"out:{_SEGMENTS} parts:size rows:size cols:size",
        each("parts", "rows", "cols"),
    ),
    "softmax_forward": Kernel(
        "softmax", f"x:{_ROWS} out:{_ROWS} rows:size cols:size log:code", warps("rows")
    ),
    "softmax_backward": Kernel(
        "softmax", f"dy:{_ROWS} y:{_ROWS} out:{_ROWS} rows:size cols:size log:code", warps("rows")
    ),
    "pair_loss": Kernel(
        "softmax",
        f"x:{_ROWS} target:acc(rows*cols) loss:acc(rows) dx:{_ROWS} rows:size cols:size "
        "scale:number kind:code delta:number",
        warps("rows"),
    ),
    "softmax_cross_entropy": Kernel(
        "loss",
        "logits:real(rows*classes) labels:int64(rows) loss:acc(rows) dlogits:real(rows*classes) "
        "hit:uint8(rows) rows:size classes:size scale:number smoothing:number",
        warps("rows"),
    ),
    "softmax_cross_entropy_shares": Kernel(
        "loss",
        "logits:real(rows*classes) shares:acc(rows*classes) loss:acc(rows) "
        "dlogits:real(rows*classes) hit:uint8(rows) rows:size classes:size scale:number "
        "smoothing:number",
        warps("rows"),
    ),
    "embedding_forward": Kernel(
        "embedding",
        "table:real ids:int64(count) out:real(count*width) count:size width:size",
        each("count", "width"),
    ),
    "embedding_backward": Kernel(
        "embedding",
        "dy:real(count*width) ids:int64(count) dtable:acc count:size width:size",
        each("count", "width"),
    ),
    "attention_forward": Kernel(
        "attention",
        f"q:view k:view v:view out:{_QUERIES} lse:{_LSE} {_HEADS}",
        groups("g.n", "g.heads", "g.tq"),
    ),
    "cached_attention": Kernel(
        "attention",
        "q:real(tokens*heads*dim) keys:real(slots*heads*dim) values:real(slots*heads*dim) "
        "out:real(tokens*heads*dim) table:int64(rows*columns) owner:int64(tokens) "
        "visible:int64(tokens) tokens:size slots:size heads:size dim:size rows:size columns:size "
        "block:size scale:number",
        warps("tokens", "heads"),
    ),
    "cached_attention_int8": Kernel(
        "attention",
        f"q:real(tokens*heads*dim) {_BYTES} out:real(tokens*heads*dim) table:int64(rows*columns) "
        "owner:int64(tokens) visible:int64(tokens) tokens:size slots:size heads:size dim:size "
        "rows:size columns:size block:size scale:number",
        warps("tokens", "heads"),
    ),
    "cache_int8": Kernel(
        "attention",
        f"x:real(tokens*3*heads*dim) at:int64(tokens) {_BYTES} tokens:size slots:size heads:size "
        "dim:size",
        warps("tokens", "heads"),
    ),
    "attention_backward": Kernel(
        "attention",
        f"{_ATTENTION} dq:view dk:view dv:view {_HEADS}",
        None,
        (PLAIN, C),
        passes=("attention_backward_q", "attention_backward_kv"),
    ),
    "attention_backward_q": Kernel(
        "attention", f"{_ATTENTION} dq:view {_HEADS}", groups("g.n", "g.heads", "g.tq"), (CUDA,)
    ),
    "attention_backward_kv": Kernel(
        "attention",
        f"{_ATTENTION} dk:view dv:view {_HEADS}",
        groups("g.n", "g.heads", "g.tk"),
        (CUDA,),
    ),
    "lstm_forward": Kernel(
        "recurrent",
        f"gates:real(4*rows*units) c_before:acc(rows*units) c:acc(rows*units) h:{_CELLS} "
        "rows:size units:size",
        each("rows", "units"),
    ),
    "lstm_backward": Kernel(
        "recurrent",
        f"gates:real(4*rows*units) c_before:acc(rows*units) c:acc(rows*units) dh:{_CELLS} "
        "dc:acc(rows*units) rows:size units:size",
        each("rows", "units"),
    ),
    "gru_forward": Kernel(
        "recurrent",
        f"x_gates:real(3*rows*units) h_gates:real(3*rows*units) h_before:{_CELLS} h:{_CELLS} "
        "rows:size units:size",
        each("rows", "units"),
    ),
    "gru_backward": Kernel(
        "recurrent",
        f"x_gates:real(3*rows*units) h_gates:real(3*rows*units) h_before:{_CELLS} dh:{_CELLS} "
        "rows:size units:size",
        each("rows", "units"),
    ),
    "gemm": Kernel(
        "gemm",
        "a:view a0:size a1:size b:view b0:size b1:size out:view c0:size c1:size bias:real?(cols) "
        "rows:size cols:size k:size relu:code accumulate:code",
        None,
        (C,),
    ),
    "im2col": Kernel(
        "columns",
        f"x:{_IMAGE} columns:{_COLUMN} g:conv_geometry",
        each("g.n", "g.od", "g.oh", "g.ow", "g.kd", "g.kh", "g.kw", "g.c"),
    ),
    "col2im": Kernel(
        "columns",
        f"columns:{_COLUMN} out:{_IMAGE} g:conv_geometry",
        each("g.n", "g.d", "g.h", "g.w", "g.c"),
    ),
    "conv2d_forward": Kernel(
        "conv2d",
        f"x:{_X} w:{_W} b:real?(g.outputs) out:{_Y} g:conv_geometry relu:code",
        None,
        (PLAIN, C),
    ),
    "conv2d_backward_input": Kernel(
        "conv2d", f"dy:{_Y} w:{_W} out:{_X} g:conv_geometry", None, (PLAIN, C)
    ),
    "conv2d_backward_weights": Kernel(
        "conv2d", f"x:{_X} dy:{_Y} dw:{_W} db:real?(g.outputs) g:conv_geometry", None, (PLAIN, C)
    ),
    "int8_dense": Kernel("int8", _INT8_DENSE, None, (PLAIN, C)),
    "int8_conv": Kernel("int8", _INT8_CONV, None, (PLAIN, C)),
    "maxpool2d_forward": Kernel(
        "pool2d",
        f"x:{_POOL_IN} out:{_POOL_OUT} g:pool_geometry",
        each("g.n", "g.oh", "g.ow", "g.c"),
    ),
    "maxpool2d_backward": Kernel(
        "pool2d",
        f"dy:{_POOL_OUT} x:{_POOL_IN} y:{_POOL_OUT} out:{_POOL_IN} g:pool_geometry relu:code",
        each("g.n", "g.h", "g.w", "g.c"),
    ),
    "maxpool_forward": Kernel(
        "pooling",
        f"x:{_POOL_IN} out:{_POOL_OUT} place:int64(g.n*g.oh*g.ow*g.c) g:pool_geometry",
        each("g.n", "g.oh", "g.ow", "g.c"),
    ),
    "maxpool_backward": Kernel(
        "pooling",
        f"dy:{_POOL_OUT} place:int64(g.n*g.oh*g.ow*g.c) out:{_POOL_IN} g:pool_geometry",
        each("g.n", "g.h", "g.w", "g.c"),
    ),
    "avgpool_forward": Kernel(
        "pooling",
        f"x:{_POOL_IN} out:{_POOL_OUT} g:pool_geometry",
        each("g.n", "g.oh", "g.ow", "g.c"),
    ),
    "avgpool_backward": Kernel(
        "pooling",
        f"dy:{_POOL_OUT} out:{_POOL_IN} g:pool_geometry",
        each("g.n", "g.h", "g.w", "g.c"),
    ),
    "augment_gather": Kernel("augment", f"x:real({_STILL}) {_MOVE}", each(*_PIXELS)),
    "augment_gather_u8": Kernel("augment", f"x:uint8({_STILL}) {_MOVE}", each(*_PIXELS)),
    "augment_vectors": Kernel(
        "augment",
        f"x:{_MOVED} samples:int64(g.n) vectors:int64(2*count) count:size seed:size epoch:size "
        "g:augment_geometry shift:number",
        each(*_PIXELS),
    ),
    "augment_cutout": Kernel(
        "augment",
        "x:real(n*h*w*c) samples:int64(n) seed:size epoch:size n:size h:size w:size c:size "
        "size:size chance:size",
        each("n", "size", "size"),
    ),
    "augment_jitter": Kernel(
        "augment",
        "x:real(n*pixels*c) samples:int64(n) seed:size epoch:size n:size pixels:size c:size "
        "black:number brightness:number contrast:number saturation:number",
        warps("n"),
    ),
    "augment_noise": Kernel(
        "augment",
        "x:real(n*size) samples:int64(n) seed:size epoch:size n:size size:size std:number",
        each("n", "size"),
    ),
    "augment_mixup": Kernel(
        "augment",
        f"x:real(n*size) other:real(n*size) {_MIX} n:size size:size count:size chance:size",
        blocks("n"),
    ),
    "augment_cutmix": Kernel(
        "augment",
        f"x:real(n*h*w*c) other:real(n*h*w*c) {_MIX} n:size h:size w:size c:size count:size "
        "chance:size",
        blocks("n"),
    ),
    "sgd_step": Kernel(
        "optim",
        "p:real(n) g:real(n) v:real(n) n:size lr:number momentum:number weight_decay:number "
        "nesterov:code",
        each("n"),
    ),
    "adam_step": Kernel(
        "optim",
        f"{_MOMENTS} n:size lr:number beta1:number beta2:number eps:number weight_decay:number "
        "fix1:number fix2:number decoupled:code",
        each("n"),
    ),
    "adam_direction": Kernel(
        "optim",
        f"{_MOMENTS} out:real(n) n:size beta1:number beta2:number eps:number weight_decay:number "
        "fix1:number fix2:number",
        each("n"),
    ),
    "sparse_sgd": Kernel("optim", "p:real(n) g:real(n) n:size lr:number", each("n")),
    "slot_squares": Kernel(
        "optim",
        "x:real starts:int64(slots) stops:int64(slots) out:float64(slots) slots:size",
        blocks("slots"),
    ),
    "slot_scale": Kernel(
        "optim",
        "x:real starts:int64(slots) stops:int64(slots) factors:float64(slots) slots:size",
        blocks("slots"),
    ),
    "int8_pack": Kernel(
        "compress",
        "x:float32(n) scales:float32(blocks) q:uint8(n) n:size block:size blocks:size seed:size",
        blocks("blocks"),
    ),
    "int8_unpack": Kernel(
        "compress",
        "scales:float32(blocks) q:uint8(n) y:float32(n) n:size block:size blocks:size sign:code",
        each("n"),
    ),
    "sign_pack": Kernel(
        "compress",
        "x:float32(n) scales:float32(blocks) bits:uint8(bytes) n:size block:size blocks:size "
        "bytes:size",
        warps("blocks"),
    ),
    "sign_unpack": Kernel(
        "compress",
        "scales:float32(blocks) bits:uint8(bytes) y:float32(n) n:size block:size blocks:size "
        "bytes:size sign:code",
        each("n"),
    ),
    "add_and_keep": Kernel("compress", "values:float32(n) residual:float32(n) n:size", each("n")),
    "topk": Kernel(
        "compress",
        "x:float32(n) index:int32(k) value:float32(k) n:size k:size",
        None,
        (PLAIN, C),
    ),
    "topk_feedback": Kernel(
        "compress",
        "x:float32(n) residual:float32(n) hint:uint32(1) index:int32(k) value:float32(k) n:size "
        "k:size",
        None,
        (PLAIN, C),
    ),
    "topk_pack": Kernel(
        "compress",
        "index:int32(k) value:float32(k) packet:uint16(2*room) k:size room:size",
        None,
        (PLAIN, C),
    ),
    "topk_unpack": Kernel(
        "compress",
        "packet:uint16(2*room) y:float32(n) finite:uint8(1) room:size n:size sign:code",
        None,
        (PLAIN, C),
    ),
    "half_pack": Kernel(
        "compress", "x:float32(n) out:uint16(n) n:size bfloat16:code", None, (PLAIN, C)
    ),
    "half_unpack": Kernel(
        "compress", "x:uint16(n) y:float32(n) n:size bfloat16:code sign:code", None, (PLAIN, C)
    ),
    "topk_count": Kernel(
        "compress", "x:float32(n) counts:int64(bins) n:size bins:size", each("n"), (CUDA,)
    ),
    "topk_select": Kernel(
        "compress",
        "x:float32(n) index:int64(room) found:int64(1) n:size room:size least:size",
        each("n"),
        (CUDA,),
    ),
    "scatter_add": Kernel(
        "compress",
        "index:int64(count) value:float32(count) y:float32(n) count:size n:size sign:code",
        each("count"),
        (CUDA,),
    ),
}
