"""How long the clients of our own server may take, and how long a connection may last."""

from __future__ import annotations

import random
from math import inf
from typing import NamedTuple

from gateway.grpc.frames import ErrorCode
from gateway.grpc.http2 import Http2Connection

__all__ = ["Patience"]

_SPREAD = 0.1
"""Of the age: connections that were made together are not to end together."""


class Patience(NamedTuple):
    """Seconds."""

    header_s: float = 10.0
    """For a greeting, and from the first byte to the last of any headers."""
    body_s: float = 30.0
    """Longest pause in sending a message, and in taking answers."""
    request_s: float = 60.0
    """From a request's headers to its end, if its client set no earlier deadline."""
    idle_s: float = 75.0
    """Without a call, before a connection is ended."""
    age_s: float = 3600.0
    """Of a connection, give or take a tenth, before it takes no more calls: clients that then connect anew find
    processes that were not there before. The standard's own way; a client does not notice."""
    grace_s: float = 60.0
    """For the calls that are under way then."""

    @property
    def grpcio_options(self) -> list[tuple[str, int]]:
        """As far as grpcio's server can be told the same."""
        return [
            ("grpc.max_connection_idle_ms", int(self.idle_s * 1000)),
            ("grpc.max_connection_age_ms", int(self.age_s * 1000)),
            ("grpc.max_connection_age_grace_ms", int(self.grace_s * 1000)),
        ]

    def age_of_one(self) -> float:
        return self.age_s * random.uniform(1 - _SPREAD, 1 + _SPREAD)

    def end_overdue(self, connection: Http2Connection, now: float) -> None:
        """End a connection of which any of the times is over."""
        if connection.stalled(now - self.body_s):
            connection.abort()
        elif connection.ending:
            return
        elif now > connection.unfinished_since + self.header_s:
            connection.close(ErrorCode.ENHANCE_YOUR_CALM, f"what began {self.header_s:g} s ago is not complete")
        elif now > connection.retires + self.grace_s:
            connection.close()
        elif now > connection.retires or now > connection.last_busy(now) + self.idle_s:
            connection.go_away()

    def why_overdue(self, now: float, *, heard: float, began: float, deadline: float = inf) -> str:
        """What to tell a client whose message is not complete; empty while there is time.

        Args:
            heard: monotonic second since which it could have sent more.
            began: of the request.
            deadline: its own.
        """
        if now > heard + self.body_s:
            return f"nothing more of the request within {self.body_s:g} s"
        if now > min(deadline, began + self.request_s):
            return f"the request was not complete within {min(deadline - began, self.request_s):g} s"
        return ""
