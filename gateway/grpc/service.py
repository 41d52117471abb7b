"""What every gRPC service here shares: errors that leak nothing, requests that cannot be decoded, and the hot call."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from formats.envelope import Outcome, Prediction
from formats.errors import Overloaded, PenstockError
from gateway.metrics import Metrics
from gateway.router import Deployment, Router
from gateway.settings import Settings
from gateway.status import grpc_status
from gateway.timing import Timing, server_timing

__all__ = ["Predictor", "unary"]

_log = logging.getLogger("penstock.grpc")

_MAX_DETAILS = 4096
"""Characters of an error text; the status travels in a header of limited size."""

RequestT = TypeVar("RequestT", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]


class Predictor:
    """Sends predictions through the router and counts them."""

    def __init__(self, settings: Settings, router: Router, metrics: Metrics) -> None:
        self.router = router
        self.timeout_s = settings.request_timeout_s
        self.draining = False
        self.in_flight = 0
        self._metrics = metrics
        self._server_timing = settings.server_timing

    def deadline(self, received: float, context: Context) -> float:
        """The earlier of the client's deadline and the gateway's own."""
        remaining = context.time_remaining()
        return received + (self.timeout_s if remaining is None else min(remaining, self.timeout_s))

    async def predict(
        self, deployment: Deployment, prediction: Prediction, protocol: str, received: float, context: Context
    ) -> Outcome:
        """Queue and wait. Raises `PenstockError` when the outcome is one."""
        if self.draining:
            raise Overloaded("the gateway is shutting down")
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def deliver(outcome: Outcome, timing: Timing | None) -> None:
            if answer.done():  # the client may have cancelled
                return
            if timing is not None and self._server_timing:
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
            self._metrics.answered(protocol, deployment.manifest.name, code, time.monotonic() - received)
        if not outcome.ok:
            raise outcome.error()
        return outcome

    def rejected(self, protocol: str, error: PenstockError) -> None:
        """Count a prediction that failed before it was queued."""
        self._metrics.answered(protocol, "", grpc_status(error).name, 0.0)


def unary(
    request_type: type[RequestT],
    behaviour: Callable[[RequestT, Context], Awaitable[Message]],
) -> grpc.RpcMethodHandler[Any, Any]:
    """A unary method: undecodable bytes are INVALID_ARGUMENT, our errors their own status, surprises leak no text."""

    async def call(request: RequestT | None, context: Context) -> Message:
        if request is None:
            text = f"the message is not a valid {request_type.DESCRIPTOR.full_name}"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
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
            await context.abort(grpc.StatusCode.INTERNAL, "internal error of the gateway; see its log")
        raise AssertionError  # abort always raises

    def parse(data: bytes) -> RequestT | None:
        try:
            return request_type.FromString(data)
        except (DecodeError, UnicodeDecodeError):
            return None

    return grpc.unary_unary_rpc_method_handler(
        call, request_deserializer=parse, response_serializer=lambda message: message.SerializeToString()
    )
