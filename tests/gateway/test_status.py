"""Errors meet statuses in one table."""

from formats import errors
from gateway.rest.routes import ROUTES
from gateway.status import STATUS, grpc_status, http_status


def leaves(kind: type[errors.PenstockError]) -> set[type[errors.PenstockError]]:
    children = kind.__subclasses__()
    return {leaf for child in children for leaf in leaves(child)} if children else {kind}


def test_every_error_has_a_status_and_nothing_else_has() -> None:
    assert set(STATUS) == leaves(errors.PenstockError)


def test_what_the_client_can_mend_is_4xx_and_the_rest_5xx() -> None:
    for kind, (http, _) in STATUS.items():
        assert http.value // 100 == (4 if issubclass(kind, errors.RequestError) else 5), kind


def test_every_protocol_has_a_form_for_every_error() -> None:
    for route in ROUTES:
        for kind in STATUS:
            response = route.error(kind("a text"))
            assert response.status >= 400
            assert b"a text" in response.body


def test_both_transports_read_the_same_table() -> None:
    error = errors.DeadlineExceeded("late")

    assert (http_status(error), grpc_status(error).name) == (504, "DEADLINE_EXCEEDED")
