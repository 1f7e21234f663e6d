"""What a client is told: one class for each status of the protocol, over gRPC and REST."""

from __future__ import annotations

from typing import ClassVar

from mpidl.errors import MpidlError


class ServingError(MpidlError):
    """A request cannot be answered. Its text goes to the client.

    Attributes:
        status: Of HTTP.
        code: Of gRPC.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "INTERNAL"

    @property
    def text(self) -> str:
        """The message in one line."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}; {self.remedy}" if self.remedy else head


class InvalidRequest(ServingError):
    """The request is malformed, or does not fit the model."""

    status, code = 400, "INVALID_ARGUMENT"


class NotFound(ServingError):
    """There is no such model, version or address."""

    status, code = 404, "NOT_FOUND"


class TooLarge(ServingError):
    """The request has more bytes than the server takes."""

    status, code = 413, "RESOURCE_EXHAUSTED"


class Unsupported(ServingError):
    """A part of the protocol that the server does not have."""

    status, code = 501, "UNIMPLEMENTED"


class Unavailable(ServingError):
    """Not now: the queue is full, the deadline has passed, the model or its rank is gone."""

    status, code = 503, "UNAVAILABLE"


class Unauthenticated(ServingError):
    """The client does not say who it is, or not in a way that the server believes."""

    status, code = 401, "UNAUTHENTICATED"


class Forbidden(ServingError):
    """The client may not do that."""

    status, code = 403, "PERMISSION_DENIED"


class TooMany(ServingError):
    """The client asks too often."""

    status, code = 429, "RESOURCE_EXHAUSTED"
