"""What people write first for gRPC: `grpc.aio` around ONNX Runtime, the Open Inference Protocol's one call.

python -m loadtests.bench.servers.grpc_server PORT DIR MODEL PROCESSES
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.bench.servers.bare import fork, session_of

__all__ = ["main"]


async def serve(port: int, graph: Path) -> None:
    import grpc  # noqa: PLC0415  after the fork, which it would not survive

    from formats.protos import open_inference_pb2 as pb  # noqa: PLC0415

    session = session_of(graph, num_threads=1)

    async def infer(request: pb.ModelInferRequest, _: Any) -> pb.ModelInferResponse:
        (tensor,) = request.inputs
        x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(tuple(tensor.shape))
        (y,) = session.run(None, {"x": x})
        output = pb.ModelInferResponse.InferOutputTensor(name="y", datatype="FP32", shape=y.shape)
        return pb.ModelInferResponse(model_name=request.model_name, outputs=[output], raw_output_contents=[y.tobytes()])

    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    handler = grpc.unary_unary_rpc_method_handler(
        infer, pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString
    )
    service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": handler})
    server.add_generic_rpc_handlers((service,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def main(port: str, directory: str, model: str, num_processes: str) -> None:
    fork(int(num_processes))
    asyncio.run(serve(int(port), Path(directory) / f"{model}.onnx"))


if __name__ == "__main__":
    main(*sys.argv[1:])
