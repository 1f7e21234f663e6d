"""Parameters from and to safetensors files, also those that PyTorch wrote."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.errors import CheckpointError, ConfigError, errno_of, os_remedy, strerror
from mpidl.extras import load_extra
from mpidl.files import check_folder, write_atomically
from mpidl.nn import Dense, Embedding, Model, Residual

SUFFIX = ".safetensors"
Tensors = dict[str, NDArray[Any]]
Names = dict[
    str, tuple[str, Callable[[NDArray[Any]], NDArray[Any]]]
]  # our name -> theirs, and how theirs becomes ours


def _same(tensor: NDArray[Any]) -> NDArray[Any]:
    return tensor


def _kernel(tensor: NDArray[Any]) -> NDArray[Any]:
    return tensor.transpose(2, 3, 1, 0)  # (out, in, h, w) to (h, w, in, out)


def _turned(tensor: NDArray[Any]) -> NDArray[Any]:
    return tensor.T


def save_weights(model: Model, path: Path | str) -> None:
    """Write all parameters, and state such as running means, under their names in the model.

    The file is complete or not there. Raises ConfigError for another suffix than .safetensors, CheckpointError where it cannot
    be written.
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
    """ConfigError before any work if weights cannot be written to `path`."""
    if path.suffix != SUFFIX:
        raise ConfigError(
            f"unknown kind of file {path.suffix!r}",
            where=str(path),
            remedy=f"name it something{SUFFIX}",
        )
    check_folder(path)


def load_weights(model: Model, path: Path | str) -> None:
    """Fill a model from a safetensors file: our own, or a state dict of torchvision's resnets or of GPT-2 (Hugging Face).

    Which it is shows in its names. Output weights that GPT-2 shares with its embedding are copied. Raises CheckpointError
    for a file that cannot be read, and for tensors that are missing, left over, or of another shape; the model is then
    unchanged.
    """
    tensors = read_tensors(path)
    names = names_for(model, tensors)
    flat = model.parameters
    wanted = {**flat.slots, **flat.state_slots}
    problems = [
        f"{theirs} is missing" for ours, (theirs, _) in names.items() if theirs not in tensors
    ]
    used = {theirs for theirs, _ in names.values()}
    problems += [
        f"{name} has no place in the model"
        for name in tensors
        if name not in used and not _ignored(name)
    ]
    problems += [f"{name} is not in the file" for name in wanted if name not in names]
    ready: Tensors = {}
    for ours, (theirs, convert) in names.items():
        if theirs in tensors and ours in wanted:
            ready[ours] = convert(tensors[theirs])
            if ours.endswith(".positions"):
                ready[ours] = ready[ours][: wanted[ours].spec.shape[0]]  # a shorter context is fine
            if ready[ours].shape != wanted[ours].spec.shape:
                problems.append(
                    f"{theirs} has shape {ready[ours].shape}, {ours} needs {wanted[ours].spec.shape}"
                )
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            "; ".join(problems[:3]) + more,
            where=str(path),
            remedy="build the model with the options of the file",
        )
    for name, tensor in ready.items():
        flat.value(name)[...] = model.ops.to_device(np.ascontiguousarray(tensor.astype(flat.dtype)))


def read_tensors(path: Path | str) -> Tensors:
    """All tensors of a safetensors file, bfloat16 as float32."""
    safetensors = load_extra("safetensors", "reading weights")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: np.asarray(file.get_tensor(name)) for name in file.keys()}
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"cannot be read as safetensors: {error}", where=str(path), remedy="check the file"
        ) from error


def names_for(model: Model, tensors: Tensors) -> Names:
    """Where each parameter of the model is found in a file with these tensors."""
    if any(name.endswith("layer1.0.conv1.weight") for name in tensors):
        return _resnet(model, tensors)
    if any(name.endswith("h.0.attn.c_attn.weight") for name in tensors):
        return _gpt2(model, tensors)
    return {
        name: (name, _same) for name in [*model.parameters.slots, *model.parameters.state_slots]
    }


def _ignored(name: str) -> bool:
    """Buffers of PyTorch that are no weights."""
    return name.endswith((".num_batches_tracked", ".attn.bias", ".attn.masked_bias"))


def _norm(ours: str, theirs: str, *, running: bool) -> Names:
    parts = ["weight", "bias", *(["running_mean", "running_var"] if running else [])]
    return {f"{ours}.{part}": (f"{theirs}.{part}", _same) for part in parts}


def _resnet(model: Model, tensors: Tensors) -> Names:
    found = (re.match(r"layer(\d+)\.(\d+)\.", name) for name in tensors)
    blocks = sorted({(int(match[1]), int(match[2])) for match in found if match})
    residuals = [layer.name for layer in model.walk() if isinstance(layer, Residual)]
    names: Names = {
        "conv1.weight": ("conv1.weight", _kernel),
        **_norm("batchnorm1", "bn1", running=True),
    }
    for ours, (stage, block) in zip(residuals, blocks, strict=False):
        theirs = f"layer{stage}.{block}"
        for number in range(1, 4):
            if f"{theirs}.conv{number}.weight" in tensors:
                names[f"{ours}.body.conv{number}.weight"] = (
                    f"{theirs}.conv{number}.weight",
                    _kernel,
                )
                names |= _norm(
                    f"{ours}.body.batchnorm{number}", f"{theirs}.bn{number}", running=True
                )
        if f"{theirs}.downsample.0.weight" in tensors:
            names[f"{ours}.shortcut.conv1.weight"] = (f"{theirs}.downsample.0.weight", _kernel)
            names |= _norm(f"{ours}.shortcut.batchnorm1", f"{theirs}.downsample.1", running=True)
    return names | {"dense1.weight": ("fc.weight", _turned), "dense1.bias": ("fc.bias", _same)}


def _gpt2(model: Model, tensors: Tensors) -> Names:
    prefix = next(
        name[: -len("h.0.attn.c_attn.weight")]
        for name in tensors
        if name.endswith("h.0.attn.c_attn.weight")
    )
    embedding = next(
        (layer.name for layer in model.walk() if isinstance(layer, Embedding)), "embedding1"
    )
    residuals = [layer.name for layer in model.walk() if isinstance(layer, Residual)]
    blocks = [
        (attend, think, f"{prefix}h.{index}")
        for index, (attend, think) in enumerate(zip(*[iter(residuals)] * 2, strict=False))
    ]
    names: Names = {
        f"{embedding}.weight": (f"{prefix}wte.weight", _same),
        f"{embedding}.positions": (f"{prefix}wpe.weight", _same),
    }
    for attend, think, theirs in blocks:
        names |= _norm(f"{attend}.body.layernorm1", f"{theirs}.ln_1", running=False)
        names |= _norm(f"{think}.body.layernorm1", f"{theirs}.ln_2", running=False)
        pairs = {
            f"{attend}.body.attention1.qkv": "attn.c_attn",
            f"{attend}.body.attention1.out": "attn.c_proj",
        }
        pairs |= {f"{think}.body.dense1": "mlp.c_fc", f"{think}.body.dense2": "mlp.c_proj"}
        for ours, part in pairs.items():  # these weights are (in, out) there too
            names |= {
                f"{ours}.{kind}": (f"{theirs}.{part}.{kind}", _same) for kind in ("weight", "bias")
            }
    head = [layer.name for layer in model.layers if isinstance(layer, Dense)]
    output = "lm_head.weight" if "lm_head.weight" in tensors else f"{prefix}wte.weight"
    return (
        names
        | _norm("layernorm1", f"{prefix}ln_f", running=False)
        | {f"{name}.weight": (output, _turned) for name in head}
    )
