"""Compressed gradient exchange: a bucket goes in, its sum over all ranks comes out, and fewer bytes travel.

A compressor is not "compress, then all-reduce": sums of compressed values cannot be compressed values, and PowerSGD reduces two
factors. So each one brings its own exchange, over the collectives; `ErrorFeedback` wraps those that keep no residual of their
own (PowerSGD).
"""

from typing import Any

from mpidl.compression.compressor import Compressor, StatelessCompressor
from mpidl.compression.error_feedback import ErrorFeedback
from mpidl.options import Place, Section
from mpidl.registry import Registry

COMPRESSORS: Registry[type[Compressor]] = Registry(
    "compressor",
    "sync.compression",
    {
        "fp16": "mpidl.compression.half:Float16",
        "bf16": "mpidl.compression.half:BFloat16",
        "int8": "mpidl.compression.quantized:Int8",
        "sign": "mpidl.compression.quantized:Sign",
        "topk": "mpidl.compression.topk:TopK",
        "powersgd": "mpidl.compression.powersgd:PowerSGD",
    },
)


def create(name: str, *, seed: int = 0, **options: Any) -> Compressor:
    """The compressor `name`.

    Args:
        name: See `COMPRESSORS`.
        seed: Of stochastic rounding and random factors.
        options: Fields of its `Options`.

    Raises:
        ConfigError: The name or an option is unknown or impossible.
    """
    where = f"compression.create({name!r})"
    COMPRESSORS.check(name, where)
    kind = COMPRESSORS.options(name)
    place = Place(origin=lambda key: where)
    return create_from(name, kind.read(options, place), seed=seed)


def create_from(name: str, options: Section, *, seed: int = 0) -> Compressor:
    """The compressor `name` with checked options, and error feedback around it if it needs that."""
    compressor = COMPRESSORS[name](options, seed=seed)
    if isinstance(compressor, StatelessCompressor) and compressor.options.error_feedback:
        return ErrorFeedback(compressor)
    return compressor


__all__ = ["COMPRESSORS", "Compressor", "ErrorFeedback", "create", "create_from"]
