"""Hyperparameters as users send them, strings or typed values, to an algorithm's frozen dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from trainers.job import ClientError

__all__ = [
    "Flag",
    "Fraction",
    "IntegerList",
    "PositiveInteger",
    "WholeNumber",
    "choice",
    "number",
    "parse",
    "plain_values",
]

T = TypeVar("T")

# Sent by published examples and by tuning jobs; they never had a meaning for training.
_IGNORED = frozenset({"model_prefix"})

_KINDS = {"integer": "an integer", "number": "a number", "boolean": "0, 1, True or False", "string": "a text"}


def number(value: object) -> object:
    """Refuse True and False where a number is meant."""
    if isinstance(value, bool):  # Python would take True for 1
        raise ValueError("Input should be a number")  # noqa: TRY004  pydantic reports ValueError alone
    return value


def choice(value: object) -> object:
    """A whole number in digits, as platforms send all values, where a few numbers are possible."""
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


def _flag(value: object) -> object:
    known = {"true": True, "1": True, "false": False, "0": False}
    found = known.get(str(value).strip().lower())
    if found is None:
        raise ValueError("Input should be 0, 1, True or False")
    return found


def _integers(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return value


WholeNumber = Annotated[int, Field(ge=0), BeforeValidator(number)]
PositiveInteger = Annotated[int, Field(ge=1), BeforeValidator(number)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), BeforeValidator(number)]
"""A number from 0 to 1, both included."""
Flag = Annotated[bool, BeforeValidator(_flag)]
"""`0`, `1`, `True` or `False`, in any case."""
IntegerList = Annotated[
    tuple[PositiveInteger, ...],
    BeforeValidator(_integers),
    Field(description="a comma list of integers of at least 1, such as 10, 20"),
]
"""`"10, 20"`: a comma list, spaces allowed."""


def parse(schema: type[T], given: Mapping[str, object], ignored: AbstractSet[str] | None = None) -> T:
    """Check everything that can be checked before any data is read.

    Args:
        schema: a frozen dataclass; constraints stand in its annotations, conditions between fields in `__post_init__`.
        given: string or typed values by name.
        ignored: names that are let in and have no meaning; by default those that begin with `_`, and `model_prefix`.

    Raises:
        ClientError: unknown names (with the nearest known one), missing ones, and every bad value with what is allowed.
    """
    unread = _without_meaning(given) if ignored is None else ignored
    values = {k: _unquoted(v) for k, v in given.items() if k not in unread}
    known = [field.name for field in dataclasses.fields(schema)]  # type: ignore[arg-type]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ClientError(_unexpected(unknown, known))
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        raise ClientError("; ".join(_describe(schema, detail) for detail in error.errors())) from error


def _without_meaning(given: Mapping[str, object]) -> AbstractSet[str]:
    return _IGNORED | {name for name in given if name.startswith("_")}


def plain_values(hyperparameters: Any) -> dict[str, str | int | float | bool | None]:
    """Every field as a JSON scalar under its own name; `parse` reads them back. Tuples become comma lists."""
    values = dataclasses.asdict(hyperparameters)
    return {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in values.items() if v != ()}


def _unexpected(unknown: list[str], known: list[str]) -> str:
    """The text that JSON-schema checks gave users of the original, and what they probably meant."""
    quoted = ", ".join(f"'{name}'" for name in unknown)
    was = "was" if len(unknown) == 1 else "were"
    text = f"Additional hyperparameters are not allowed ({quoted} {was} unexpected)"
    for name in unknown:
        near = difflib.get_close_matches(name.strip().lower().replace(" ", "_").replace("-", "_"), known, n=1)
        if near:
            text += f"; instead of '{name}', did you mean '{near[0]}'?"
    return text


def _describe(schema: type[Any], detail: ErrorDetails) -> str:
    if not detail["loc"]:  # from `__post_init__`, which names the fields itself
        return str(detail["ctx"]["error"])
    name = str(detail["loc"][0])
    if detail["type"] == "missing":
        return f"'{name}' is a required property: hyperparameter {name} has no default"
    text = f"'{detail['input']}' is not valid under any of the given schemas: hyperparameter {name} must be "
    properties = TypeAdapter(schema).json_schema()["properties"]
    options = properties[name].get("enum") or [
        o for each in properties[name].get("anyOf", []) for o in each.get("enum", [])
    ]
    near = difflib.get_close_matches(str(detail["input"]), [str(option) for option in options], n=1)
    return text + _allowed(properties[name]) + (f"; did you mean '{near[0]}'?" if near else "")


def _allowed(rule: Mapping[str, Any]) -> str:
    """A JSON schema of one field in words."""
    if "description" in rule:
        return str(rule["description"])
    if "anyOf" in rule:
        return " or ".join(_allowed(each) for each in rule["anyOf"] if each.get("type") != "null")
    if "enum" in rule:
        return "one of " + ", ".join(str(option) for option in rule["enum"])
    kind = _KINDS.get(rule.get("type", ""), "a valid value")
    low, high = rule.get("minimum"), rule.get("maximum")
    if low is not None and high is not None:
        return f"{kind} from {low:g} to {high:g}"
    return kind if low is None else f"{kind} of at least {low:g}"


def _unquoted(value: object) -> object:
    """Strip one layer of JSON quotes: script-mode tools send `"sgd"` with its quotes."""
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
