"""One locust user per protocol; what they send is the algorithm's `Workload`."""

from __future__ import annotations

import random
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

import grpc.experimental.gevent

# ruff: noqa: E402  the order matters:
# before anything opens a channel: without it gRPC's threads block every other user of the process
grpc.experimental.gevent.init_gevent()

import tritonclient.grpc
import tritonclient.http
from locust import FastHttpUser, User, task
from tritonclient.utils import np_to_triton_dtype

from loadtests.workload import Array, Neighbours, Workload

__all__ = ["OipGrpcUser", "OipUser", "SagemakerUser", "TorchserveUser"]

_TIMEOUT_S = 60.0


class _RestUser(FastHttpUser):
    abstract = True
    protocol = ""
    connection_timeout = _TIMEOUT_S
    network_timeout = _TIMEOUT_S

    def on_start(self) -> None:
        self.workload: Workload = self.environment.workload
        self.endpoint = urllib.parse.quote(self.environment.parsed_options.endpoint, safe="")
        self.neighbours: Neighbours = self.environment.neighbours[self.protocol]

    def post(self, path: str, index: int, body: bytes, headers: dict[str, str], values: Callable[[Any], Array]) -> None:
        """Send one request; its answer counts as a failure unless it has the right form and is its own."""
        client: Any = self.client  # its annotations leave out that a body may be bytes
        with client.post(path, data=body, headers=headers, name=self.protocol, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}: {(response.text or str(response.error))[:200]}")
                return
            try:
                self.neighbours.check(index, values(response))
            except (ValueError, KeyError) as error:
                response.failure(f"wrong answer: {error}")


class _BodyUser(_RestUser):
    """Posts the algorithm's own request bodies."""

    abstract = True
    path = ""

    @task
    def predict(self) -> None:
        index = random.randrange(len(self.workload.bodies))
        body = self.workload.bodies[index]
        headers = {"Content-Type": body.content_type, "Accept": self.workload.accept}
        path = self.path.format(self.endpoint)
        self.post(path, index, body.data, headers, lambda response: self.workload.check_body(response.content))


class SagemakerUser(_BodyUser):
    protocol = "sagemaker"
    path = "/endpoints/{}/invocations"


class TorchserveUser(_BodyUser):
    protocol = "torchserve"
    path = "/predictions/{}"


class OipUser(_RestUser):
    """Open Inference Protocol over REST with binary tensors, written and read by Triton's client."""

    protocol = "oip"

    @task
    def predict(self) -> None:
        index = random.randrange(len(self.workload.tensors))
        inputs = [_infer_input(tritonclient.http, name, each) for name, each in self.workload.tensors[index].items()]
        client = tritonclient.http.InferenceServerClient
        body, header_length = client.generate_request_body(inputs)
        headers = {"Content-Type": "application/octet-stream"}
        if header_length is not None:
            headers["Inference-Header-Content-Length"] = str(header_length)
        self.post(f"/v2/models/{self.endpoint}/infer", index, body, headers, self._values)

    def _values(self, response: Any) -> Array:
        length = response.headers.get("inference-header-content-length")
        result = tritonclient.http.InferenceServerClient.parse_response_body(
            response.content, header_length=None if length is None else int(length)
        )
        names = [each["name"] for each in result.get_response()["outputs"]]
        return self.workload.check_tensors({name: result.as_numpy(name) for name in names})


class _ClosedOnce(tritonclient.grpc.InferenceServerClient):  # type: ignore[misc]
    """Triton's client, which would close its channel a second time when it is finalised.

    While the interpreter ends, that close may wait for ever for a lock of gRPC's gevent thread, which has ended with
    the lock in its hand; and it counts the open channels one too low while there are others.
    """

    def __del__(self) -> None:
        pass


class OipGrpcUser(User):
    """Open Inference Protocol over gRPC, by Triton's client."""

    protocol = "oip-grpc"

    def on_start(self) -> None:
        self.workload: Workload = self.environment.workload
        self.options = self.environment.parsed_options
        self.neighbours: Neighbours = self.environment.neighbours[self.protocol]
        self.client = _ClosedOnce(self.options.grpc)

    def on_stop(self) -> None:
        self.client.close()

    @task
    def predict(self) -> None:
        index = random.randrange(len(self.workload.tensors))
        inputs = [_infer_input(tritonclient.grpc, name, each) for name, each in self.workload.tensors[index].items()]
        begin = time.perf_counter()
        failure: Exception | None = None
        try:
            result = self.client.infer(self.options.endpoint, inputs, client_timeout=_TIMEOUT_S)
        except tritonclient.grpc.InferenceServerException as error:
            failure = error
        seconds = time.perf_counter() - begin
        if failure is None:
            try:
                names = [each.name for each in result.get_response().outputs]
                values = self.workload.check_tensors({name: result.as_numpy(name) for name in names})
                self.neighbours.check(index, values)
            except (ValueError, KeyError) as error:
                failure = ValueError(f"wrong answer: {error}")
        self.environment.events.request.fire(
            request_type="grpc",
            name=self.protocol,
            response_time=seconds * 1000,
            response_length=0,
            exception=failure,
            context={},
        )


def _infer_input(client: Any, name: str, array: Array) -> Any:
    tensor = client.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor
