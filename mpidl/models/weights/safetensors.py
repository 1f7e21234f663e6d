"""Save the weights of a model, and load those of any format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mpidl.errors import CheckpointError, ConfigError, errno_of, os_remedy, strerror
from mpidl.extras import load_extra
from mpidl.files import check_folder, write_atomically
from mpidl.models.weights.formats import Source, Tensor, Tensors, detect_format
from mpidl.nn import Model

SUFFIX = ".safetensors"
MOST_PROBLEMS = 3  # listed in one error


def save_weights(model: Model, path: Path | str) -> None:
    """Save all parameters, and state such as running means, under their names in the model.

    The file is replaced atomically.

    Args:
        model: The model.
        path: A path that ends in .safetensors.

    Raises:
        ConfigError: The path has another suffix.
        CheckpointError: The file cannot be written.
    """
    check_weights(Path(path))
    save_file = load_extra("safetensors.numpy", "writing weights").save_file
    error_type = load_extra("safetensors", "writing weights").SafetensorError
    flat = model.parameters
    names = [*flat.slots, *flat.state_slots]
    tensors = {name: np.array(model.ops.to_host(flat.value(name))) for name in names}
    try:
        with write_atomically(path) as partial:
            save_file(tensors, partial, metadata={"format": "mpidl"})
    except (OSError, error_type) as error:
        code = errno_of(error)
        what = strerror(code) if code else str(error)
        raise CheckpointError(
            f"cannot be written: {what}", where=str(path), remedy=os_remedy(code)
        ) from error


def check_weights(path: Path) -> None:
    """Check that weights can be written to `path`.

    Raises:
        ConfigError: Its suffix is not .safetensors, or its folder cannot be used.
    """
    if path.suffix != SUFFIX:
        raise ConfigError(
            f"unknown kind of file {path.suffix!r}",
            where=str(path),
            remedy=f"choose a name that ends in {SUFFIX}",
        )
    check_folder(path)


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file, bfloat16 as float32.

    Raises:
        CheckpointError: The file cannot be read.
    """
    safetensors = load_extra("safetensors", "reading weights")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = file.keys()  # the file itself is not iterable
            return {name: np.asarray(file.get_tensor(name)) for name in names}
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"cannot be read as safetensors: {error}", where=str(path), remedy="check the file"
        ) from error


def load_weights(model: Model, path: Path | str) -> None:
    """Load the weights of a model from a safetensors file of any format in FORMATS.

    Args:
        model: The model; it is unchanged if an error is raised.
        path: The file; its format is detected by the names of the tensors.

    Raises:
        CheckpointError: The file cannot be read, or tensors are missing, unknown or of another
            shape.
    """
    tensors = read_tensors(path)
    kind = detect_format(tensors)
    sources = kind.sources(model, tensors)
    used = {source.name for source in sources.values()}
    extra = [name for name in tensors if name not in used and not kind.is_ignored(name)]
    problems = [f"{name} is missing" for name in sorted(used) if name not in tensors]
    problems += [f"{name} has no place in the model" for name in extra]
    ready, misfits = _convert(model, tensors, sources)
    problems += misfits
    if problems:
        more = len(problems) - MOST_PROBLEMS
        raise CheckpointError(
            "; ".join(problems[:MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else ""),
            where=str(path),
            remedy="build the model with the options of the file",
        )
    flat = model.parameters
    for name, tensor in ready.items():
        flat.value(name)[...] = model.ops.to_device(np.ascontiguousarray(tensor.astype(flat.dtype)))


def _convert(
    model: Model, tensors: Tensors, sources: Mapping[str, Source]
) -> tuple[dict[str, Tensor], list[str]]:
    """Convert the tensors of a file to parameters; returns also what does not fit."""
    slots = {**model.parameters.slots, **model.parameters.state_slots}
    problems = [f"{name} is not in the file" for name in slots if name not in sources]
    ready: dict[str, Tensor] = {}
    for name, source in sources.items():
        if source.name not in tensors or name not in slots:
            continue
        tensor, shape = source.convert(tensors[source.name]), slots[name].spec.shape
        if name.endswith(".positions"):
            tensor = tensor[: shape[0]]  # the model may have a shorter context
        if tensor.shape != shape:
            problems.append(f"{source.name} has shape {tensor.shape}, {name} needs {shape}")
        ready[name] = tensor
    return ready, problems
