"""Compressed gradient exchange: a bucket goes in, its sum over all ranks comes out, fewer bytes
travel.

A compressor is not "compress, then all-reduce": sums of compressed values are no compressed values,
and PowerSGD reduces two factors. So each one brings its own exchange, over the collectives.
"""

from typing import Any

from mpidl.compression.compressor import Compressor
from mpidl.options import Place
from mpidl.registry import Registry

COMPRESSORS: Registry[type[Compressor]] = Registry(
    "compressor",
    "sync.compression",
    {
        "fp16": "mpidl.compression.half:Float16",
        "bf16": "mpidl.compression.half:BFloat16",
        "int8": "mpidl.compression.int8:Int8",
        "sign": "mpidl.compression.sign:Sign",
        "topk": "mpidl.compression.topk:TopK",
        "powersgd": "mpidl.compression.powersgd:PowerSGD",
    },
)


def create(name: str, *, seed: int = 0, **options: Any) -> Compressor:
    """Make a compressor.

    Args:
        name: See `COMPRESSORS`.
        seed: Of stochastic rounding and random factors.
        options: Fields of its `Options`.

    Raises:
        ConfigError: The name or an option is unknown or impossible.
    """
    where = f"compression.create({name!r})"
    COMPRESSORS.check(name, where)
    checked = COMPRESSORS.options(name).read(options, Place(origin=lambda key: where))
    return COMPRESSORS[name](checked, seed=seed)


__all__ = ["COMPRESSORS", "Compressor", "create"]
