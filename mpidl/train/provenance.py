"""A signed statement of how a model came to be, and the comparison with a run of it again.

The form is SLSA provenance v1 (slsa.dev/provenance/v1) in an in-toto statement: the subjects are
the checkpoint and each parameter, the dependencies data and code.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from mpidl.errors import CheckpointError, SecurityError
from mpidl.files import reading
from mpidl.options import Place
from mpidl.security.envelope import AGAIN, IN_TOTO, MOST_BYTES, Envelope
from mpidl.security.sealed_file import content_sha256
from mpidl.security.section import AuditConfig
from mpidl.security.signer import Signer
from mpidl.security.trusted import Signatory, Trusted
from mpidl.train import checkpoint as ckpt
from mpidl.train.checkpoint.format import compute_digest
from mpidl.train.origin import Origin, Text

NAME = "provenance.json"
STATEMENT: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "https://slsa.dev/provenance/v1"
BUILD: Final = "urn:mpidl:training:1"
STATE = "state"  # of layers, beside the parameters
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Digests(msgspec.Struct, frozen=True):
    """By algorithm."""

    sha256: Sha256


class Resource(msgspec.Struct, frozen=True):
    """Something with a name and a digest."""

    name: Text
    digest: Digests


class External(msgspec.Struct, frozen=True):
    """What a user has chosen: the configuration, and the step that the model is of."""

    configuration: dict[str, Any]
    step: Annotated[int, Meta(ge=0)]


class Internal(msgspec.Struct, frozen=True):
    """The jobs that have trained, first to last: an entry for each change of what they are of."""

    jobs: Annotated[tuple[Origin, ...], Meta(min_length=1, max_length=10_000)]


class Definition(msgspec.Struct, frozen=True):
    """What the model was made from."""

    buildType: Literal["urn:mpidl:training:1"]
    externalParameters: External
    internalParameters: Internal
    resolvedDependencies: tuple[Resource, ...]


class Builder(msgspec.Struct, frozen=True):
    """What has trained."""

    id: Text


class Details(msgspec.Struct, frozen=True):
    """How it was made; the byproduct is the line of the audit log that tells of it."""

    builder: Builder
    byproducts: tuple[Resource, ...] = ()


class Predicate(msgspec.Struct, frozen=True):
    """SLSA provenance v1."""

    buildDefinition: Definition
    runDetails: Details


class Provenance(msgspec.Struct, frozen=True):
    """The statement.

    Attributes:
        subject: The checkpoint, then its arrays: parameters by name, and the state of layers.
    """

    kind: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    subject: Annotated[tuple[Resource, ...], Meta(min_length=2)]
    predicateType: Literal["https://slsa.dev/provenance/v1"]
    predicate: Predicate

    @property
    def chosen(self) -> External:
        """Configuration and step."""
        return self.predicate.buildDefinition.externalParameters

    @property
    def jobs(self) -> tuple[Origin, ...]:
        """That have trained."""
        return self.predicate.buildDefinition.internalParameters.jobs

    @property
    def arrays(self) -> dict[str, str]:
        """Digests of parameters and state, by name."""
        return {one.name: one.digest.sha256 for one in self.subject[1:]}


def describe(path: Path) -> Provenance:
    """The provenance of a checkpoint.

    Args:
        path: The file.

    Raises:
        CheckpointError: It cannot be read, or does not know where it comes from.
        SecurityError: The audit log that its run has written is not there.
    """
    saved = ckpt.read(path)
    meta = saved.meta
    if not meta.origins:
        raise CheckpointError(
            "does not say what it was made from",
            where=str(path),
            remedy="train with this mpidl, or resume the run for at least one step",
        )
    dependencies = {("mpidl", job.code): None for job in meta.origins}
    dependencies |= {pair: None for job in meta.origins for pair in job.data.items()}
    with reading(path):
        whole = Resource(path.name, Digests(content_sha256(path)))
    arrays = [Resource(name, Digests(digest)) for name, digest in digests(saved).items()]
    definition = Definition(
        BUILD,
        External(meta.config, meta.step),
        Internal(meta.origins),
        tuple(Resource(name, Digests(digest)) for name, digest in dependencies),
    )
    builder = Builder(f"urn:mpidl:{meta.origins[-1].environment['mpidl']}")
    details = Details(builder, _audited(meta.config, whole.digest.sha256))
    return Provenance(STATEMENT, (whole, *arrays), PREDICATE, Predicate(definition, details))


def digests(saved: ckpt.Checkpoint) -> dict[str, str]:
    """SHA-256 of each parameter, and of the state of layers, in a checkpoint."""
    values, found = saved.buffers["parameters"], {}
    for name, (start, shape) in saved.meta.parameters.items():
        found[name] = compute_digest(values[start : start + math.prod(shape)])
    if STATE in saved.buffers:
        found[STATE] = compute_digest(saved.buffers[STATE])
    return found


def _audited(config: dict[str, Any], digest: str) -> tuple[Resource, ...]:
    """The line of the audit log that tells of a checkpoint, if its run has one."""
    tree = config.get("security", {}).get("audit", {})
    audit = AuditConfig.read(tree, Place(("security", "audit")))
    if not audit.folder:
        return ()
    from mpidl.security.audit.folder import read_logs

    folder = Path(audit.folder)
    logs = read_logs(folder, Path(audit.heads or folder), None)
    for scan in logs.scans.values():
        for record, line in zip(scan.records, scan.digests, strict=True):
            if record.digest == digest and record.action == "checkpoint.saved":
                return (Resource(f"audit log {record.event}", Digests(line)),)
    raise SecurityError(
        "no audit log knows this checkpoint, though its run has one",
        where=audit.folder,
        remedy="bring the logs back to security.audit.folder",
    )


def seal(provenance: Provenance, signer: Signer) -> bytes:
    """The signed bundle."""
    return signer.sign(msgspec.json.encode(provenance), IN_TOTO).encode() + b"\n"


def open_bundle(path: Path, trusted: Trusted) -> tuple[Provenance, Signatory]:
    """The provenance in a bundle, and who has signed it.

    Raises:
        SecurityError: Nobody trusted has signed it, or it is no provenance.
        DataError: It cannot be read.
    """
    with reading(path), open(path, "rb") as file:
        raw = file.read(MOST_BYTES + 1)
    envelope = Envelope.decode(raw.removesuffix(b"\n"), str(path))
    signatory = trusted.verify(envelope, IN_TOTO, str(path))
    try:
        return msgspec.json.decode(envelope.payload, type=Provenance), signatory
    except (ValueError, RecursionError) as error:
        raise SecurityError(
            "is no provenance of a training run", where=str(path), remedy=AGAIN
        ) from error
