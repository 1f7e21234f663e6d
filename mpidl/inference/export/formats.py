"""The formats of `mpidl export`, one line each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from mpidl.errors import ConfigError
from mpidl.files import check_folder
from mpidl.registry import Registry

if TYPE_CHECKING:
    from mpidl.inference.predict import Predictor

AUTO = "auto"
DTYPES = (
    "uint8",
    "int8",
    "uint16",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
)


class Exporter(ABC):
    """A format of exported models.

    Args:
        path: The file to write.
        input_dtype: Of the inputs of the exported program, where it has any; or "auto".
    """

    def __init__(self, path: Path, input_dtype: str = AUTO) -> None:
        self.path = path
        self.input_dtype = input_dtype

    def check(self) -> None:
        """Refuse what cannot be written, before the checkpoint is read.

        Raises:
            ConfigError: The path cannot be a new file, or an option has no meaning here.
            PlatformError: A package is missing.
        """
        check_folder(self.path)

    @abstractmethod
    def write(self, predictor: Predictor) -> str:
        """Write the file, on one rank; it is replaced atomically.

        Args:
            predictor: The model.

        Returns:
            What was written, for people.

        Raises:
            MpidlError: The model cannot be exported, or the file cannot be written.
        """


EXPORTERS: Registry[type[Exporter]] = Registry(
    "format of export, by its suffix,",
    "the suffix",
    {
        ".onnx": "mpidl.inference.export.onnx_file:Onnx",
        ".safetensors": "mpidl.inference.export.safetensors_file:Safetensors",
    },
)


def choose_exporter(path: Path, input_dtype: str = AUTO) -> Exporter:
    """The exporter for a file.

    Args:
        path: The file to write.
        input_dtype: See `Exporter`.

    Raises:
        ConfigError: There is none for its suffix.
    """
    if path.suffix not in EXPORTERS:
        raise ConfigError(
            f"unknown kind of file {path.suffix!r}",
            where=str(path),
            remedy=f"choose a name that ends in {' or '.join(EXPORTERS)}",
        )
    return EXPORTERS[path.suffix](path, input_dtype)
