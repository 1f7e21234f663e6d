"""What a model is, in the fields of the protocol and of Triton's model configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpidl.serving.repository import Version
from mpidl.serving.tensors import TensorSpec

PLATFORM = "mpidl"


def _describe_tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": [-1, *spec.shape]}


def describe_metadata(version: Version, numbers: Sequence[str]) -> dict[str, Any]:
    """Metadata of a model.

    Args:
        version: It.
        numbers: Of all its versions that serve.
    """
    return {
        "name": version.model,
        "versions": list(numbers),
        "platform": PLATFORM,
        "inputs": [_describe_tensor(spec) for spec in version.about.inputs],
        "outputs": [_describe_tensor(spec) for spec in version.about.outputs],
    }


def _config_tensor(spec: TensorSpec) -> dict[str, Any]:
    datatype = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    return {"name": spec.name, "data_type": datatype, "dims": list(spec.shape)}


def describe_config(version: Version) -> dict[str, Any]:
    """The configuration of a model."""
    settings, about = version.settings, version.about
    policies: dict[str, dict[str, Any]] = {
        "latest": {"latest": {"num_versions": settings.num_versions}},
        "all": {"all": {}},
        "specific": {"specific": {"versions": list(settings.specific)}},
    }
    parameters = {"task": about.task, "checkpoint": about.file, "weight": f"{settings.weight:g}"}
    if version.coder is not None:
        parameters["generate"] = "true"
    return {
        "name": version.model,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": policies[settings.version_policy],
        "max_batch_size": settings.max_batch_size,
        "input": [_config_tensor(spec) for spec in about.inputs],
        "output": [_config_tensor(spec) for spec in about.outputs],
        "dynamic_batching": {
            "preferred_batch_size": list(settings.preferred_batch_size),
            "max_queue_delay_microseconds": settings.max_queue_delay_microseconds,
            "priority_levels": settings.priority_levels,
            "default_priority_level": settings.default_priority_level,
            "default_queue_policy": {
                "timeout_action": settings.timeout_action,
                "default_timeout_microseconds": settings.default_timeout_microseconds,
                "allow_timeout_override": settings.allow_timeout_override,
                "max_queue_size": settings.max_queue_size,
            },
        },
        "instance_group": [
            {
                "name": f"{version.model}_0",
                "kind": "KIND_CPU",
                "count": sum(worker.alive for worker in version.lane.workers),
            }
        ],
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }
