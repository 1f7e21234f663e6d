"""The run configuration: a TOML file, checked before anything starts."""

from mpidl.config.load import Config, build_config, load_config, load_on_root, read_model
from mpidl.config.sections import (
    BackendConfig,
    CheckpointConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    SyncConfig,
    TaskConfig,
    TrainConfig,
)

__all__ = [
    "BackendConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "SyncConfig",
    "TaskConfig",
    "TrainConfig",
    "build_config",
    "load_config",
    "load_on_root",
    "read_model",
]
