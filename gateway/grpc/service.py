"""What every gRPC service here shares: errors that leak nothing, requests that cannot be decoded, and the hot call."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message

from formats.envelope import Outcome, Prediction
from formats.errors import Overloaded, PenstockError
from gateway.grpc.calls import Call, Hot
from gateway.metrics import Metrics
from gateway.router import Deployment, Router
from gateway.settings import Settings
from gateway.status import grpc_status
from gateway.timing import Timing, server_timing

__all__ = ["PredictionMethod", "Predictor", "unary"]

_log = logging.getLogger("penstock.grpc")

_MAX_DETAILS = 4096
"""Characters of an error text; the status travels in a header of limited size."""

_SHUTTING_DOWN = "the gateway is shutting down"
_INTERNAL = "internal error of the gateway; see its log"

RequestT = TypeVar("RequestT", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]


class PredictionMethod(NamedTuple):
    """A method that predicts, whoever speaks HTTP/2 for it."""

    protocol: str
    """Label in the metrics."""
    request_type: type[Message]
    parse: Callable[[bytes], Any]
    """The message, or more that was made of its bytes. Raises as `FromString` does."""
    prepare: Callable[[Any, float, float], tuple[Deployment, Prediction]]
    """What was parsed, monotonic second of its arrival, seconds it may take. Raises `PenstockError`."""
    answer: Callable[[Any, Deployment, Outcome], bytes]
    """The response to what was parsed, from an outcome that is no error."""


class Predictor:
    """Sends predictions through the router and counts them."""

    def __init__(self, settings: Settings, router: Router, metrics: Metrics) -> None:
        self.router = router
        self.timeout_s = settings.request_timeout_s
        self.draining = False
        self.in_flight = 0
        self.metrics = metrics
        self.server_timing = settings.server_timing

    def deadline(self, received: float, context: Context) -> float:
        """The earlier of the client's deadline and the gateway's own."""
        remaining = context.time_remaining()
        return received + (self.timeout_s if remaining is None else min(remaining, self.timeout_s))

    async def predict(
        self, deployment: Deployment, prediction: Prediction, protocol: str, received: float, context: Context
    ) -> Outcome:
        """Queue and wait. Raises `PenstockError` when the outcome is one."""
        if self.draining:
            raise Overloaded(_SHUTTING_DOWN)
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        spent: Timing | None = None

        def deliver(outcome: Outcome, timing: Timing | None) -> None:
            nonlocal spent
            if answer.done():  # the client may have cancelled
                return
            spent = timing
            if timing is not None and self.server_timing:
                text = server_timing(time.monotonic() - received, timing).decode()
                context.set_trailing_metadata((("server-timing", text),))
            answer.set_result(outcome)

        self.in_flight += 1
        code = "CANCELLED"
        try:
            deployment.submit(prediction, deliver)
            outcome = await answer
            code = "OK" if outcome.ok else grpc_status(outcome.error()).name
        finally:
            self.in_flight -= 1
            self.metrics.answered(protocol, deployment.manifest.name, code, time.monotonic() - received, spent)
        if not outcome.ok:
            raise outcome.error()
        return outcome

    def unary(self, method: PredictionMethod) -> grpc.RpcMethodHandler[Any, Any]:
        """For a `grpc.aio` server."""

        async def call(request: Any, context: Context) -> bytes:
            received = time.monotonic()
            try:
                limit_s = self.deadline(received, context) - received
                deployment, prediction = method.prepare(request, received, limit_s)
            except PenstockError as error:
                self.rejected(method.protocol, error)
                raise
            outcome = await self.predict(deployment, prediction, method.protocol, received, context)
            return method.answer(request, deployment, outcome)

        return unary(method.request_type, call, method.parse)

    def hot(self, method: PredictionMethod) -> Hot:
        """For our own server: no task, no future, no context."""
        return partial(self._start, method)

    def _start(self, method: PredictionMethod, message: bytes | bytearray, call: Call) -> None:
        received = time.monotonic()
        try:
            request = method.parse(cast("bytes", message))  # a bytearray does, and is not copied
        except (DecodeError, UnicodeDecodeError):
            call.finish(grpc.StatusCode.INVALID_ARGUMENT, _not_valid(method.request_type))
            return
        if self.draining:
            call.finish(grpc_status(Overloaded()), _SHUTTING_DOWN)
            return
        try:
            deployment, prediction = method.prepare(request, received, min(call.deadline - received, self.timeout_s))
        except PenstockError as error:
            self.rejected(method.protocol, error)
            call.finish(grpc_status(error), str(error)[:_MAX_DETAILS])
            return
        except Exception:  # noqa: BLE001  the text of a surprise is not for clients
            _log.exception("%s failed", method.request_type.DESCRIPTOR.full_name)
            call.finish(grpc.StatusCode.INTERNAL, _INTERNAL)
            return
        flight = _Flight(self, method, request, deployment, call, received)
        self.in_flight += 1
        call.on_cancel = flight.cancelled
        deployment.submit(prediction, flight.deliver)

    def rejected(self, protocol: str, error: PenstockError) -> None:
        """Count a prediction that failed before it was queued."""
        self.metrics.answered(protocol, "", grpc_status(error).name, 0.0)


class _Flight:
    """One prediction of our own server, on its way."""

    __slots__ = ("_call", "_deployment", "_method", "_predictor", "_received", "_request")

    def __init__(
        self,
        predictor: Predictor,
        method: PredictionMethod,
        request: Any,
        deployment: Deployment,
        call: Call,
        received: float,
    ) -> None:
        self._predictor = predictor
        self._method = method
        self._request = request
        self._deployment = deployment
        self._call = call
        self._received = received

    def deliver(self, outcome: Outcome, timing: Timing | None) -> None:
        call, predictor = self._call, self._predictor
        if call.over:  # the client has gone, and was counted then
            return
        message = b""
        if outcome.ok:
            message = self._method.answer(self._request, self._deployment, outcome)
        seconds = time.monotonic() - self._received
        shown = ((b"server-timing", server_timing(seconds, timing)),) if timing and predictor.server_timing else ()
        if outcome.ok:
            code = grpc.StatusCode.OK
            call.reply(message, *shown)
        else:
            error = outcome.error()
            code = grpc_status(error)
            call.finish(code, str(error)[:_MAX_DETAILS], *shown)
        self._count(code, seconds, timing)  # which the client need not wait for

    def cancelled(self) -> None:
        self._count(grpc.StatusCode.CANCELLED, time.monotonic() - self._received, None)

    def _count(self, code: grpc.StatusCode, seconds: float, timing: Timing | None) -> None:
        predictor = self._predictor
        predictor.in_flight -= 1
        name = self._deployment.manifest.name
        predictor.metrics.answered(self._method.protocol, name, code.name, seconds, timing)


def _not_valid(request_type: type[Message]) -> str:
    return f"the message is not a valid {request_type.DESCRIPTOR.full_name}"


def unary(
    request_type: type[RequestT],
    behaviour: Callable[[RequestT, Context], Awaitable[Message | bytes]],
    parse: Callable[[bytes], Any] | None = None,
) -> grpc.RpcMethodHandler[Any, Any]:
    """A unary method: undecodable bytes are INVALID_ARGUMENT, our errors their own status, surprises leak no text.

    With `parse`, the method gets what that makes of the request's bytes.
    """

    async def call(request: Any, context: Context) -> Message | bytes:
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _not_valid(request_type))
        try:
            return await behaviour(request, context)
        except PenstockError as error:
            await context.abort(grpc_status(error), str(error)[:_MAX_DETAILS])
        except asyncio.CancelledError:
            raise
        except grpc.aio.AbortError:
            raise
        except Exception:  # noqa: BLE001  the text of a surprise is not for clients
            _log.exception("%s failed", request_type.DESCRIPTOR.full_name)
            await context.abort(grpc.StatusCode.INTERNAL, _INTERNAL)
        raise AssertionError  # abort always raises

    def parsed(data: bytes) -> Any:
        try:
            return parse(data) if parse is not None else request_type.FromString(data)
        except (DecodeError, UnicodeDecodeError):
            return None

    return grpc.unary_unary_rpc_method_handler(call, request_deserializer=parsed, response_serializer=_serialized)


def _serialized(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()
