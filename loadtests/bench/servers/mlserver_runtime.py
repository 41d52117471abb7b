"""A model of MLServer that runs ONNX Runtime; runs in MLServer's own virtual environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlserver
from mlserver.codecs import NumpyCodec

from loadtests.bench.servers.bare import session_of

__all__ = ["OnnxModel"]


class OnnxModel(mlserver.MLModel):  # type: ignore[misc]  # it is in no environment that is checked
    async def load(self) -> bool:
        self._session = session_of(Path(self.settings.parameters.uri), num_threads=1)
        return True

    async def predict(self, payload: Any) -> Any:
        x = NumpyCodec.decode_input(payload.inputs[0])
        (y,) = self._session.run(None, {"x": x})
        return mlserver.types.InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output(name="y", payload=y)]
        )
