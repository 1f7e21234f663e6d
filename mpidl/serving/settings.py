"""models.toml: which models a server has, and how requests wait for them. Names as in Triton."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from mpidl.errors import ConfigError, os_remedy
from mpidl.options import Place, Section

Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
Microseconds = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Bytes = Annotated[int, msgspec.Meta(ge=1 << 10, le=1 << 40)]
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,17}")


class ModelSettings(Section, frozen=True):
    """One model.

    Attributes:
        path: A run folder or a checkpoint (version 1), or a folder with one for each version, by
            number: 1, 2, ... Relative to models.toml.
        versions: Number of a version -> run folder or checkpoint, instead of `path`.
        version_policy: Which versions are served: the latest `num_versions`, all, or the `specific`
            ones.
        num_versions: For version_policy = "latest".
        specific: For version_policy = "specific".
        outputs: What is computed, as `mpidl predict --output`; none: what the task predicts.
        max_batch_size: Samples of a batch, and of a request, at most.
        preferred_batch_size: Sizes at which a batch need not wait any more.
        max_queue_delay_microseconds: How long a request may wait for others to join its batch.
        max_queue_size: Requests that may wait; others are refused.
        priority_levels: Of requests, 1 is the most urgent; 0: all are equal.
        default_priority_level: Of requests that do not say; 0: the least urgent.
        timeout_action: A request past its timeout is refused (REJECT), or comes after all others
            (DELAY).
        default_timeout_microseconds: Of requests that do not say; 0: none.
        allow_timeout_override: Whether a request may say a shorter one.
        weight: Share of the ranks where models compete for them.
        instances: Ranks that hold the model; 0: all.
        tokenizer: Of a language model, the file that its data were sharded with; none: tokens are
            bytes. Relative to models.toml.
        cache_tokens: Of a language model, tokens of the texts that a rank writes at once, prompts
            included; 0: 16 texts of full length.
        cache: Of a language model, how keys and values are kept: "float", or "int8" in a quarter of
            the memory.
    """

    path: str = ""
    versions: dict[str, str] = {}  # noqa: RUF012 (msgspec copies it)
    version_policy: Literal["latest", "all", "specific"] = "latest"
    num_versions: Count = 1
    specific: tuple[Count, ...] = ()
    outputs: tuple[str, ...] = ()
    max_batch_size: Count = 32
    preferred_batch_size: tuple[Count, ...] = ()
    max_queue_delay_microseconds: Microseconds = 0
    max_queue_size: Count = 1024
    priority_levels: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    default_priority_level: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    default_timeout_microseconds: Microseconds = 0
    allow_timeout_override: bool = True
    weight: Annotated[float, msgspec.Meta(gt=0, le=1e6)] = 1.0
    instances: Number = 0
    tokenizer: str = ""
    cache_tokens: Annotated[int, msgspec.Meta(ge=0, le=1 << 32)] = 0
    cache: Literal["float", "int8"] = "float"

    def check(self, place: Place) -> None:
        """Refuse settings that do not fit together."""
        if bool(self.path) == bool(self.versions):
            raise place.error(
                f"{'.'.join(place.path)} needs either a path or versions",
                "path",
                remedy='name the run: path = "runs/cnn"',
            )
        for version in self.versions:
            if not VERSION.fullmatch(version):
                remedy = 'number the versions: versions = {1 = "runs/a", 2 = "runs/b"}'
                raise place.error(f"{version!r} is no version", "versions", remedy=remedy)
        if any(size > self.max_batch_size for size in self.preferred_batch_size):
            remedy = "raise max_batch_size"
            what = "a preferred_batch_size is above max_batch_size"
            raise place.error(what, "preferred_batch_size", remedy=remedy)
        if self.default_priority_level > self.priority_levels:
            remedy = f"choose one of 1 to priority_levels ({self.priority_levels})"
            what = f"default_priority_level is {self.default_priority_level}"
            raise place.error(what, "default_priority_level", remedy=remedy)


class ServerSettings(Section, frozen=True):
    """The server.

    Attributes:
        max_request_bytes: Of one request.
        max_pending_bytes: Of all requests that are being read, waiting or answered.
        in_flight: Batches that a rank has been given at most; with 2 it need not wait for the next
            one, but batches are smaller.
        body_timeout: Seconds in which a client must have sent its request, and taken the answer.
        drain_timeout: Seconds for requests to finish when the server stops.
        worker_timeout: Seconds after which a rank that does not answer counts as lost.
    """

    max_request_bytes: Bytes = 64 << 20
    max_pending_bytes: Bytes = 1 << 30
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    body_timeout: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 30.0
    drain_timeout: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 60.0
    worker_timeout: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 120.0


class SecuritySettings(Section, frozen=True):
    """Who may ask the server (docs/security.md).

    Attributes:
        identity: Of the server: a name in the folder of keys, or a folder; none: it is reached from
            this machine alone, and asks nobody who they are.
        clients: What they show: "certificates", "tokens" or "either" (over gRPC: tokens).
        requests_per_second: Of a client; 0: any number.
        burst: Requests of a client at once after a pause.
        failures: To say who they are, after which an address is locked; 0: never.
        lock_seconds: For which failures are counted, and an address is locked.
        token_file: Of a token, which `mpidl query` shows unless it is told another one.
    """

    identity: str = ""
    clients: Literal["either", "certificates", "tokens"] = "either"
    requests_per_second: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    burst: Count = 100
    failures: Number = 10
    lock_seconds: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 60.0
    token_file: str = ""


class Settings(msgspec.Struct, frozen=True):
    """A whole models.toml.

    Attributes:
        server: The server.
        security: Who may ask it.
        models: By name.
        folder: That paths are relative to.
    """

    server: ServerSettings
    models: dict[str, ModelSettings]
    folder: str
    security: SecuritySettings = SecuritySettings()


def load_settings(path: Path) -> Settings:
    """Read models.toml; a run folder or a checkpoint is served as the one model "model".

    Raises:
        ConfigError: It cannot be read, or a setting is unknown or impossible.
    """
    if path.suffix != ".toml":
        name = path.name if NAME.fullmatch(path.name) and path.is_dir() else "model"
        models = {name: ModelSettings(path=str(path.absolute()))}
        return Settings(ServerSettings(), models, str(Path.cwd()))
    try:
        tree = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        remedy, what = os_remedy(error.errno or 0), f"cannot be read: {error.strerror}"
        raise ConfigError(what, where=str(path), remedy=remedy) from error
    except (ValueError, RecursionError) as error:
        what = f"is not valid TOML: {error}"
        raise ConfigError(what, where=str(path), remedy="correct that line") from error
    return read_settings(tree, path)


def read_settings(tree: Mapping[str, Any], path: Path) -> Settings:
    """The settings of a parsed models.toml.

    Raises:
        ConfigError: A setting is unknown or impossible.
    """
    place = Place(origin=lambda name: str(path))
    if unknown := [key for key in tree if key not in ("server", "security", "models")]:
        remedy = "write [server], [security] and [models.NAME]"
        raise ConfigError(f"unknown section {unknown[0]!r}", where=str(path), remedy=remedy)
    given, server = tree.get("models", {}), tree.get("server", {})
    security = tree.get("security", {})
    others = isinstance(server, Mapping) and isinstance(security, Mapping)
    if not isinstance(given, Mapping) or not given or not others:
        remedy = "write [models.NAME], and below it path = ..."
        raise ConfigError("there is no model", where=str(path), remedy=remedy)
    models = {}
    for name, own in given.items():
        if not NAME.fullmatch(name) or not isinstance(own, Mapping):
            remedy = "use letters, digits, '_', '-' and '.'"
            raise ConfigError(f"{name!r} is no name of a model", where=str(path), remedy=remedy)
        models[name] = ModelSettings.read(own, place.inside("models").inside(name))
    return Settings(
        ServerSettings.read(server, place.inside("server")),
        models,
        str(path.absolute().parent),
        SecuritySettings.read(security, place.inside("security")),
    )
