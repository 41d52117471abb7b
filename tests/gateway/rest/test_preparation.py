"""What headers ask of every prediction route alike: compressed bodies, deadlines (protocol contract, 1.4 and 4.4)."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import np_to_triton_dtype

from formats.errors import BodyTooLarge, InvalidBody
from gateway.rest.preparation import inflate
from tests.bundles import image_png
from tests.gateway.live import LiveGateway, serving
from tests.gateway.rest.wire import Wire, assert_right, head, picture, post

CODINGS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress, "GZip": gzip.compress}
NUMBERS = b'{"a":[[1,2]],"b":[[2,4]]}'
TENSORS = json.dumps(
    {"inputs": [{"name": n, "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} for n in ("a", "b")]}
).encode()
PATHS = {
    "/endpoints/arithmetic/invocations": NUMBERS,
    "/predictions/arithmetic": NUMBERS,
    "/v2/models/arithmetic/infer": TENSORS,
}
SLOW = json.dumps({"inputs": [{"name": "rounds", "datatype": "INT64", "shape": [1], "data": [4000]}]}).encode()


# the coding by itself


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_of_a_bomb_no_more_than_the_limit_is_made(coding: str) -> None:
    bomb = CODINGS[coding](bytes(100_000_000))
    tracemalloc.start()

    with pytest.raises(BodyTooLarge, match="exceeded 1000000 bytes after decompression"):
        inflate(bomb, coding, 1_000_000)

    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_body_of_exactly_the_limit_passes(coding: str) -> None:
    assert inflate(CODINGS[coding](b"x" * 1000), coding, 1000) == b"x" * 1000


def test_members_of_one_gzip_body_are_one_body() -> None:
    assert inflate(gzip.compress(b"ab") + gzip.compress(b"") + gzip.compress(b"c"), "gzip", 10) == b"abc"


@pytest.mark.parametrize(
    ("body", "coding", "text"),
    [
        (b"", "gzip", "ends before"),
        (b"plain", "gzip", "is not the gzip"),
        (gzip.compress(b"x")[:-1], "gzip", "ends before"),
        (gzip.compress(b"x") + b"more", "gzip", "is not the gzip"),
        (gzip.compress(b"") * 65, "gzip", "follow the end"),
        (zlib.compress(b"x") + b"more", "deflate", "4 bytes follow the end"),
        (zlib.compress(b"x")[2:-4], "deflate", "is not the deflate"),
        (gzip.compress(b"x"), "deflate", "is not the deflate"),
    ],
)
def test_a_damaged_body_says_what_is_wrong(body: bytes, coding: str, text: str) -> None:
    with pytest.raises(InvalidBody, match=text):
        inflate(body, coding, 100)


# served


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("path", PATHS)
def test_a_compressed_body_is_answered_as_the_plain_one(http: httpx.Client, path: str, coding: str) -> None:
    headers = {"content-type": "application/json"}
    plain = http.post(path, content=PATHS[path], headers=headers)
    body = CODINGS[coding](PATHS[path])

    answer = http.post(path, content=body, headers={**headers, "content-encoding": coding})

    assert plain.status_code == 200
    assert (answer.status_code, answer.content) == (200, plain.content)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritonclient_may_compress_its_requests(live: LiveGateway, algorithm: str) -> None:
    """With binary tensors, whose header counts the bytes before the compression."""
    inputs = []
    for name in ("a", "b"):
        array = np.array([[6, 2]], np.float32)
        inputs.append(tritonclient.http.InferInput(name, [1, 2], np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{live.http_port}") as client:
        answer = client.infer("arithmetic", inputs, request_compression_algorithm=algorithm)

    assert answer.as_numpy("quotient").tolist() == [[1, 1]]


def test_identity_is_no_compression(http: httpx.Client) -> None:
    answer = http.post("/v2/models/arithmetic/infer", content=TENSORS, headers={"content-encoding": "identity"})

    assert answer.status_code == 200


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "zstd"])
@pytest.mark.parametrize(
    ("path", "status"), [("/endpoints/arithmetic/invocations", 400), ("/v2/models/arithmetic/infer", 415)]
)
def test_an_unknown_coding_is_refused_and_told_which_are_known(
    http: httpx.Client, path: str, status: int, coding: str
) -> None:
    """415 in the protocols that let it through; the runtime has no such code."""
    answer = http.post(path, content=PATHS[path], headers={"content-encoding": coding})

    assert answer.status_code == status
    assert coding in answer.text
    assert answer.headers["accept-encoding"] == "gzip, deflate"


def test_a_bomb_is_413(http: httpx.Client) -> None:
    bomb = gzip.compress(bytes(1_048_577))

    answer = http.post("/v2/models/arithmetic/infer", content=bomb, headers={"content-encoding": "gzip"})

    assert answer.status_code == 413
    assert "after decompression" in answer.text


def test_a_damaged_body_is_400(http: httpx.Client) -> None:
    answer = http.post("/predictions/arithmetic", content=NUMBERS, headers={"content-encoding": "gzip"})

    assert answer.status_code == 400
    assert "gzip" in answer.text


def test_compressed_and_plain_requests_are_answered_in_order(live: LiveGateway) -> None:
    wire = Wire(live.http_port)
    body = gzip.compress(image_png(picture(7)))
    compressed = head("/invocations", "Content-Encoding: gzip", f"Content-Length: {len(body)}") + body

    wire.send((compressed + post(8)) * 20)

    for _ in range(20):
        assert_right(wire.answer(), 7, num_classes=4)
        assert_right(wire.answer(), 8, num_classes=4)
    wire.close()


@pytest.fixture(scope="module")
def narrow(zoo: Path) -> Iterator[LiveGateway]:
    top = 'max_body_bytes = 1000000\nmax_held_bytes = 2000000\nrequest_timeout_unit = "ms"\n'
    with serving(zoo, top=top) as gateway:
        yield gateway


def test_what_a_body_becomes_counts_while_it_waits(narrow: LiveGateway) -> None:
    """A thousand times what came over the network: so little of it may be held as of any other."""
    body = gzip.compress(SLOW[:-1] + b" " * 900_000 + b"}")
    headers = {"content-encoding": "gzip", "x-request-timeout": "2000"}
    url = f"{narrow.url}/v2/models/slow/infer"

    def ask(_: int) -> int:
        return httpx.post(url, content=body, headers=headers, timeout=60).status_code

    with ThreadPoolExecutor(8) as clients:
        statuses = list(clients.map(ask, range(8)))

    assert statuses.count(503) > 0
    assert len(statuses) - statuses.count(503) >= 2
    assert ask(0) != 503


def test_so_do_bodies_that_came_at_once(narrow: LiveGateway) -> None:
    body = SLOW[:-1] + b" " * 60_000 + b"}"
    request = head("/v2/models/slow/infer", f"Content-Length: {len(body)}", "X-Request-Timeout: 2000") + body
    wires = [Wire(narrow.http_port) for _ in range(60)]
    for wire in wires:
        wire.send(request)

    statuses = [wire.answer().status for wire in wires]
    for wire in wires:
        wire.close()

    assert 60 - statuses.count(503) >= 2_000_000 // len(body)
    assert statuses.count(503) > 0


# deadlines


@pytest.mark.parametrize("name", ["X-Request-Timeout", "Request-Timeout"])
def test_a_header_sets_an_earlier_deadline(http: httpx.Client, name: str) -> None:
    began = time.monotonic()

    answer = http.post("/v2/models/slow/infer", content=SLOW, headers={name: "0.05"})

    assert answer.status_code == 504
    assert time.monotonic() - began < 2


def test_the_earliest_deadline_holds(http: httpx.Client) -> None:
    headers = {"x-request-timeout": "50", "request-timeout": "0.05"}

    assert http.post("/v2/models/slow/infer", content=SLOW, headers=headers).status_code == 504


def test_a_header_sets_no_later_deadline_than_the_gateways(zoo: Path) -> None:
    with serving(zoo, top="request_timeout_s = 0.05") as gateway:
        url = f"{gateway.url}/v2/models/slow/infer"
        answer = httpx.post(url, content=SLOW, headers={"x-request-timeout": "1000"}, timeout=60)

    assert answer.status_code == 504


def test_the_unit_is_a_setting(narrow: LiveGateway) -> None:
    answer = httpx.post(
        f"{narrow.url}/v2/models/slow/infer", content=SLOW, headers={"x-request-timeout": "50"}, timeout=60
    )

    assert answer.status_code == 504


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf", ""])
def test_a_deadline_that_is_none_is_400_and_says_why(http: httpx.Client, value: str) -> None:
    answer = http.post("/predictions/arithmetic", content=NUMBERS, headers={"x-request-timeout": value})

    assert answer.status_code == 400
    assert f"header 'x-request-timeout' must be a number of seconds above 0, got '{value}'" in answer.text
