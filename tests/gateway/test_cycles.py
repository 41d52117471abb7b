"""No request leaves a cycle of references behind, which would keep its body until the collector comes by."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

SERVE = """
import asyncio, gc, json, sys
from gateway.server import Gateway
from gateway.settings import PoolSettings, Settings

CLIENT = sys.argv[2]


async def ask(gateway, times):
    # a process of its own, for its objects are not ours
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENT, str(gateway.http_port), str(gateway.grpc_port), str(times)
    )
    assert await client.wait() == 0


async def main():
    settings = Settings(
        store=sys.argv[1], host="127.0.0.1", http_port=0, grpc_port=0, admin_port=0,
        pools={"cpu": PoolSettings(device="cpu", workers=int(sys.argv[3]))},
    )
    gateway = Gateway(settings)
    await gateway.start()
    while not gateway.readiness.ready:
        await asyncio.sleep(0.02)
    for task in asyncio.all_tasks():
        if task.get_name() in ("store", "tick", "health"):
            task.cancel()
    await ask(gateway, 10)
    left = []
    for times in (10, 210):
        await asyncio.sleep(0.1)
        gc.collect()
        gc.disable()
        await ask(gateway, times)
        await asyncio.sleep(0.1)
        left.append(gc.collect())
    print(json.dumps(left))
    await gateway.stop()


asyncio.run(main())
"""

REST = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
body, kind = BODY
for _ in range(int(sys.argv[3])):
    connection.request("POST", "PATH", body, {"content-type": kind})
    answer = connection.getresponse()
    answer.read()
    assert answer.status == STATUS, answer.status
"""

GRPC = """
import sys
import grpc
import numpy as np
from formats.protos import open_inference_pb2 as messages
infer = grpc.insecure_channel(f"127.0.0.1:{sys.argv[2]}").unary_unary(
    "/inference.GRPCInferenceService/ModelInfer",
    request_serializer=messages.ModelInferRequest.SerializeToString,
    response_deserializer=messages.ModelInferResponse.FromString,
)
request = messages.ModelInferRequest(model_name="arithmetic")
for name in INPUTS:
    request.inputs.add(name=name, datatype="FP32", shape=[50_000, 2])
    request.raw_input_contents.append(np.ones((50_000, 2), np.float32).tobytes())
for _ in range(int(sys.argv[3])):
    try:
        assert infer(request).outputs and OK
    except grpc.RpcError as error:
        assert not OK, error
"""

IMAGE = '(b"no picture", "image/png")'
NUMBERS = """(b'{"a":[[1,2]],"b":[[3,4]]}', "application/json")"""
TENSORS = repr(
    (
        json.dumps(
            {"inputs": [{"name": n, "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} for n in ("a", "b")]}
        ).encode(),
        "application/json",
    )
)


def rest(path: str, status: int, body: str) -> str:
    return REST.replace("PATH", path).replace("STATUS", str(status)).replace("BODY", body)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "client",
    [
        pytest.param(rest("/endpoints/arithmetic/invocations", 200, NUMBERS), id="sagemaker"),
        pytest.param(rest("/endpoints/tiny/invocations", 424, IMAGE), id="sagemaker-wrong"),
        pytest.param(rest("/endpoints/nobody/invocations", 400, NUMBERS), id="sagemaker-unknown"),
        pytest.param(rest("/predictions/arithmetic", 200, NUMBERS), id="torchserve"),
        pytest.param(rest("/v2/models/arithmetic/infer", 200, TENSORS), id="oip"),
        pytest.param(rest("/v2/models/arithmetic/infer", 400, NUMBERS), id="oip-wrong"),
        pytest.param(GRPC.replace("INPUTS", '"ab"').replace("OK", "True"), id="grpc"),
        pytest.param(GRPC.replace("INPUTS", '"a"').replace("OK", "False"), id="grpc-wrong"),
    ],
)
def test_requests_leave_no_cycles(zoo: Path, client: str, workers: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(zoo), client, str(workers)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    few, many = json.loads(done.stdout)

    assert many - few < 100, f"objects in cycles: {few} after 10 requests, {many} after 210"
