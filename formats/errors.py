"""The one family of errors that handlers and gateway share.

They know the domain, not the transport: `gateway/status.py` maps each leaf once to HTTP and once to gRPC.

    PenstockError
    |-- RequestError                 the client can mend it
    |   |-- InvalidBody              a field, its value, and what was expected
    |   |-- InvalidRequest           a header, a path or a parameter
    |   |-- UnsupportedContentType
    |   |-- NotAcceptable
    |   |-- BodyTooLarge
    |   `-- NotFound                 endpoint, model, version, variant
    `-- ServiceError                 the operator can mend it
        |-- NotReady                 still loading, or failed its golden request
        |-- Overloaded               queue full, draining
        |-- DeadlineExceeded
        |-- BackendUnavailable       no healthy target
        |-- BackendFailed            the backend answered something unusable, or died on this request
        `-- CorruptBundle            a published file differs from its checksum
"""

from __future__ import annotations

__all__ = [
    "BackendFailed",
    "BackendUnavailable",
    "BodyTooLarge",
    "CorruptBundle",
    "DeadlineExceeded",
    "InvalidBody",
    "InvalidRequest",
    "NotAcceptable",
    "NotFound",
    "NotReady",
    "Overloaded",
    "PenstockError",
    "RequestError",
    "ServiceError",
    "UnsupportedContentType",
    "code_of",
    "error_from_code",
]


class PenstockError(Exception):
    """Base of every error that may cross from a handler to a client; its text is meant for the client."""


class RequestError(PenstockError):
    pass


class InvalidBody(RequestError):
    pass


class InvalidRequest(RequestError):
    pass


class UnsupportedContentType(RequestError):
    pass


class NotAcceptable(RequestError):
    pass


class BodyTooLarge(RequestError):
    pass


class NotFound(RequestError):
    pass


class ServiceError(PenstockError):
    pass


class NotReady(ServiceError):
    pass


class Overloaded(ServiceError):
    pass


class DeadlineExceeded(ServiceError):
    pass


class BackendUnavailable(ServiceError):
    pass


class BackendFailed(ServiceError):
    pass


class CorruptBundle(ServiceError):
    pass


def _leaves(kind: type[PenstockError]) -> list[type[PenstockError]]:
    children = kind.__subclasses__()
    return [leaf for child in children for leaf in _leaves(child)] if children else [kind]


_BY_CODE = {leaf.__name__: leaf for leaf in _leaves(PenstockError)}


def code_of(error: PenstockError) -> str:
    """The name under which the error travels in an `Outcome`: the class name of its leaf."""
    return type(error).__name__


def error_from_code(code: str, message: str) -> PenstockError:
    """The inverse of `code_of`; a code of a newer worker that this side does not know becomes `BackendFailed`."""
    return _BY_CODE.get(code, BackendFailed)(message)
