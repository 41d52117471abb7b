"""Where errors become statuses: each leaf of `PenstockError` once to HTTP and once to gRPC, and nowhere else."""

from __future__ import annotations

from http import HTTPStatus

import grpc

from formats.errors import (
    BackendFailed,
    BackendUnavailable,
    BodyTooLarge,
    CorruptBundle,
    DeadlineExceeded,
    InvalidBody,
    InvalidRequest,
    NotAcceptable,
    NotFound,
    NotReady,
    Overloaded,
    PenstockError,
    UnsupportedContentType,
)

__all__ = ["RETRY_AFTER_S", "STATUS", "grpc_status", "http_status"]

STATUS: dict[type[PenstockError], tuple[HTTPStatus, grpc.StatusCode]] = {
    InvalidBody: (HTTPStatus.BAD_REQUEST, grpc.StatusCode.INVALID_ARGUMENT),
    InvalidRequest: (HTTPStatus.BAD_REQUEST, grpc.StatusCode.INVALID_ARGUMENT),
    UnsupportedContentType: (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, grpc.StatusCode.INVALID_ARGUMENT),
    NotAcceptable: (HTTPStatus.NOT_ACCEPTABLE, grpc.StatusCode.INVALID_ARGUMENT),
    BodyTooLarge: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, grpc.StatusCode.INVALID_ARGUMENT),
    NotFound: (HTTPStatus.NOT_FOUND, grpc.StatusCode.NOT_FOUND),
    NotReady: (HTTPStatus.SERVICE_UNAVAILABLE, grpc.StatusCode.UNAVAILABLE),
    Overloaded: (HTTPStatus.SERVICE_UNAVAILABLE, grpc.StatusCode.UNAVAILABLE),
    DeadlineExceeded: (HTTPStatus.GATEWAY_TIMEOUT, grpc.StatusCode.DEADLINE_EXCEEDED),
    BackendUnavailable: (HTTPStatus.SERVICE_UNAVAILABLE, grpc.StatusCode.UNAVAILABLE),
    BackendFailed: (HTTPStatus.INTERNAL_SERVER_ERROR, grpc.StatusCode.INTERNAL),
    CorruptBundle: (HTTPStatus.INTERNAL_SERVER_ERROR, grpc.StatusCode.INTERNAL),
}

RETRY_AFTER_S = 1
"""What a 503 advises: overload and reloads pass within seconds."""


def http_status(error: PenstockError) -> int:
    return STATUS[type(error)][0].value


def grpc_status(error: PenstockError) -> grpc.StatusCode:
    return STATUS[type(error)][1]
