"""Connections that say no: early, in turn, and so that the client can read it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from formats.errors import BodyTooLarge, PenstockError
from gateway.rest.door import Door
from gateway.rest.exchange import Response, encode_response, gateway_timing
from gateway.rest.routes import PredictionRoute
from gateway.status import RETRY_AFTER_S

__all__ = ["RefusingConnection"]

_MAX_TURNED_AWAY = 100
_LINGER_S = 2.0
"""After an early refusal: how long what the client still sends is thrown away, so that it can read the answer."""


class RefusingConnection(HttpToolsProtocol):
    """One connection, as far as it concerns what it does not take.

    Its requests, those of uvicorn's own kind for the application and the front door's for predictions, are told apart
    by their class.
    """

    def __init__(self, config: Config, server_state: ServerState, door: Door) -> None:
        super().__init__(config, server_state, {}, asyncio.get_running_loop())
        self._door = door
        self._deaf = False
        """What the client still sends is thrown away, and so is what the parser still tells."""
        self._excess = False
        """Open only until the client has read that there are too many connections."""
        self._last_words: tuple[Response, float] | None = None
        """A refusal that waits for the answers before it, and when it was decided."""

    def _refuse_garbage(self) -> None:
        text = "Invalid HTTP request received."
        self.logger.warning(text)
        self._refuse(400, text)

    def _too_large(self, route: PredictionRoute) -> None:
        text = f"HTTP content length exceeded {self._door.settings.max_body_bytes} bytes."
        self._refuse_prediction(route, BodyTooLarge(text))

    def _refuse_prediction(self, route: PredictionRoute, error: PenstockError) -> None:
        response = route.error(error)
        self._door.metrics.answered(route.protocol, "", str(response.status), 0.0)
        self._close_with(response)

    def _refuse(self, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
        body = b'{"error":"%b"}' % text.encode()
        self._close_with(Response(status, [(b"content-type", b"application/json"), *headers], body))

    def _turn_away(self) -> None:
        """One connection too many: it counts no longer, and stays just long enough for its client to read why."""
        self.connections.discard(self)
        door = self._door
        if door.turned_away >= _MAX_TURNED_AWAY:
            self.transport.abort()
            return
        door.turned_away += 1
        self._excess = True
        text = f"{door.settings.max_connections} connections are open already; try again later"
        self._refuse(503, text, (b"retry-after", b"%d" % RETRY_AFTER_S))

    def _close_with(self, response: Response) -> None:
        """Answer early, then read on for a moment: closing at once would reset what the client has not read yet."""
        if self._deaf or self.transport.is_closing():
            return
        self._deaf = True
        cycle: Any = self.cycle
        if cycle is not None and cycle.response_complete and not _arrived(cycle):
            self.transport.close()  # the application has answered this request already
            return
        decided = time.monotonic()
        if self._owes_answers():
            self._last_words = response, decided
        else:
            self._say_last(response, decided)

    def _owes_answers(self) -> bool:
        """Did complete requests come before the one that is refused? It gets no other answer, wherever it stands."""
        cycle: Any = self.cycle
        if cycle is None:
            return False
        if _arrived(cycle):
            return not cycle.response_complete
        self._drop(cycle)
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()
            return True
        cycle.disconnected = True
        cycle.message_event.set()
        return False

    def _drop(self, cycle: Any) -> None:
        """Let go of a body that will have no answer."""
        if not isinstance(cycle, RequestResponseCycle):
            self._door.held_bytes -= cycle.size
            cycle.size, cycle.pieces, cycle.body = 0, [], b""

    def _say_last(self, response: Response, decided: float) -> None:
        shown = gateway_timing(time.monotonic() - decided) if self._door.tells_timing else b""
        self.transport.write(encode_response(response, close=True, server_timing=shown))
        self.loop.call_later(_LINGER_S, self.transport.close)


def _arrived(cycle: Any) -> bool:
    """Has the whole request come?"""
    arrived: bool = not cycle.more_body if isinstance(cycle, RequestResponseCycle) else cycle.complete
    return arrived
