"""As `loadtests.bench.client`, for unary gRPC calls; one channel with a connection of its own for each.

python -m loadtests.bench.grpc_client URL CONNECTIONS SECONDS MESSAGE-FILE[:MESSAGE-FILE ...]
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import urllib.parse
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import grpc

from loadtests.figures import percentile

__all__ = ["main"]

Unary = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]

_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # or all channels share one connection
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


async def run(url: str, num_connections: int, seconds: float, messages: Sequence[bytes]) -> dict[str, float]:
    target = urllib.parse.urlsplit(url)
    channels = [grpc.aio.insecure_channel(target.netloc, options=_OPTIONS) for _ in range(num_connections)]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    cpu_began, began = time.process_time(), time.perf_counter()
    latencies: list[float] = []
    errors = 0

    async def ask(first: int, channel: grpc.aio.Channel) -> None:
        nonlocal errors
        call: Unary = channel.unary_unary(target.path)
        mine = islice(cycle(messages), first % len(messages), None)
        now = time.perf_counter()
        while now < began + seconds:
            sent = now
            try:
                await call(next(mine))
            except grpc.aio.AioRpcError:
                errors += 1
            now = time.perf_counter()
            latencies.append(now - sent)

    await asyncio.gather(*(ask(number, channel) for number, channel in enumerate(channels)))
    took, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    await asyncio.gather(*(channel.close() for channel in channels))
    return {
        "answers": len(latencies),
        "seconds": took,
        "p50_s": percentile(latencies, 0.5),
        "p99_s": percentile(latencies, 0.99),
        "errors": errors,
        "cpu_s": cpu_s,
    }


def main(arguments: list[str]) -> None:
    url, num_connections, seconds, message_files = arguments
    messages = [Path(name).read_bytes() for name in message_files.split(os.pathsep)]
    print(json.dumps(asyncio.run(run(url, int(num_connections), float(seconds), messages))))


if __name__ == "__main__":
    main(sys.argv[1:])
