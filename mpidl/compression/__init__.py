"""Compressed gradient exchange: a bucket goes in, its sum over all ranks comes out, and fewer bytes travel.

A compressor is not "compress, then all-reduce": sums of compressed values cannot be compressed values, and PowerSGD reduces two
factors. So each one brings its own exchange, over the collectives; `ErrorFeedback` wraps those that keep no residual of their
own (PowerSGD).
"""

from mpidl.compression.compressor import COMPRESSORS, Compressor, create
from mpidl.compression.error_feedback import ErrorFeedback

__all__ = ["COMPRESSORS", "Compressor", "ErrorFeedback", "create"]
