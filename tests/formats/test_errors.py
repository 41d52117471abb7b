"""The error family travels by name and comes back as itself."""

from __future__ import annotations

import pytest

import formats.errors
from formats.errors import BackendFailed, PenstockError, RequestError, ServiceError, code_of, error_from_code


def leaves(kind: type[PenstockError]) -> list[type[PenstockError]]:
    children = kind.__subclasses__()
    return [leaf for child in children for leaf in leaves(child)] if children else [kind]


@pytest.mark.parametrize("kind", [leaf for leaf in leaves(PenstockError) if leaf.__module__ == "formats.errors"])
def test_every_error_comes_back_from_its_code(kind: type[PenstockError]) -> None:
    back = error_from_code(code_of(kind("field 'x'")), "field 'x'")

    assert type(back) is kind
    assert str(back) == "field 'x'"
    assert issubclass(kind, RequestError) != issubclass(kind, ServiceError)
    assert kind.__name__ in formats.errors.__all__


@pytest.mark.parametrize("code", ["FromTheFuture", "", "PenstockError", "Exception", "__class__"])
def test_a_code_that_nobody_knows_is_a_failed_backend(code: str) -> None:
    assert type(error_from_code(code, "text")) is BackendFailed
