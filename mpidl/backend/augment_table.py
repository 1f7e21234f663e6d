"""The lines of `mpidl.backend.table` for augmentations."""

from __future__ import annotations

from mpidl.backend.signature import Kernel, blocks, each, warps

_STILL = "g.n*g.d*g.h*g.w*g.c"
_MOVED = "real(g.n*g.od*g.oh*g.ow*g.c)"
_PIXELS = ("g.n", "g.od", "g.oh", "g.ow")
_DRAWN = "samples:int64(g.n) seed:size epoch:size g:augment_geometry"
_MOVE = f"out:{_MOVED} {_DRAWN} scale:number shift:number fill:number"
_MIX = "share:acc(n) table:int64(count) samples:int64(n) seed:size epoch:size"

AUGMENT: dict[str, Kernel] = {
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
}
