"""Checkpoints: one HDF5 file with the flat buffers, written by all ranks, with checksums.

A file under its final name is complete: every dataset is there, forced to disk, and its SHA-256
stands in the metadata. HDF5 alone cannot tell (a killed writer can leave a file that opens and
reads as zeros).
"""

from mpidl.train.checkpoint.format import (
    BEST,
    VERSION,
    Buffers,
    Checkpoint,
    DamagedCheckpoint,
    Meta,
    OwnArrays,
    Part,
    Quantized,
)
from mpidl.train.checkpoint.reader import load_for, read, read_own
from mpidl.train.checkpoint.retention import (
    find,
    list_checkpoints,
    load_latest,
    set_aside_later,
    step_in_name,
)
from mpidl.train.checkpoint.writer import save, save_file

__all__ = [
    "BEST",
    "VERSION",
    "Buffers",
    "Checkpoint",
    "DamagedCheckpoint",
    "Meta",
    "OwnArrays",
    "Part",
    "Quantized",
    "find",
    "list_checkpoints",
    "load_for",
    "load_latest",
    "read",
    "read_own",
    "save",
    "save_file",
    "set_aside_later",
    "step_in_name",
]
