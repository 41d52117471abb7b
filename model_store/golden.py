"""The golden request: a model is ready when it has reproduced a known answer, and not before."""

from __future__ import annotations

import math

import orjson

from formats.envelope import Outcome, Prediction
from formats.errors import NotReady
from model_store.store import Bundle

__all__ = ["check_golden", "golden_prediction"]


def golden_prediction(bundle: Bundle) -> Prediction | None:
    """The request that comes with the bundle; None when it has none."""
    golden = bundle.manifest.golden
    if golden is None:
        return None
    return Prediction(
        model=bundle.manifest.name,
        version=bundle.manifest.version,
        body=(bundle.path / golden.request).read_bytes(),
        content_type=golden.content_type,
        accept=golden.accept,
        mode=golden.mode,
        request_id="golden",
    )


def check_golden(bundle: Bundle, outcome: Outcome) -> None:
    """Compare an answer with the one in the bundle.

    Raises:
        NotReady: it failed, has another form, or a number strays by more than the manifest's tolerance.
    """
    golden = bundle.manifest.golden
    assert golden is not None
    label = f"model '{bundle.manifest.name}' version {bundle.manifest.version}: golden request"
    if not outcome.ok:
        raise NotReady(f"{label} failed: {outcome.error_code}: {outcome.error_message}")
    try:
        expected = orjson.loads((bundle.path / golden.response).read_bytes())
        difference = _distance(expected, orjson.loads(outcome.body))
    except ValueError as error:
        raise NotReady(f"{label}: {error}") from error
    if not difference <= golden.tolerance:
        raise NotReady(f"{label}: answer strays by {difference:g}, tolerance {golden.tolerance:g}")


def _distance(expected: object, actual: object) -> float:
    """Largest absolute difference of two JSON values of the same form; ValueError when the forms differ."""
    if isinstance(expected, dict) and isinstance(actual, dict) and expected.keys() == actual.keys():
        return max((_distance(value, actual[key]) for key, value in expected.items()), default=0.0)
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        return max((_distance(e, a) for e, a in zip(expected, actual, strict=True)), default=0.0)
    if _is_number(expected) and _is_number(actual):
        difference = abs(float(expected) - float(actual))  # type: ignore[arg-type]
        return math.inf if math.isnan(difference) else difference
    if type(expected) is type(actual) and expected == actual:
        return 0.0
    raise ValueError(f"expected {str(expected)[:80]}, got {str(actual)[:80]}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
