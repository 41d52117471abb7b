"""Which class serves which algorithm."""

from __future__ import annotations

from importlib import import_module

from handlers.graph import Runtime
from handlers.handler import Handler
from model_store.store import Bundle

__all__ = ["load_handler"]

_HANDLERS = {
    "blazingtext": "handlers.blazingtext:BlazingText",
    "deepar": "handlers.deepar:DeepAR",
    "image_classification": "handlers.image_classification:ImageClassification",
    "object2vec": "handlers.object2vec:Object2Vec",
    "object_detection": "handlers.object_detection:ObjectDetection",
    "semantic_segmentation": "handlers.semantic_segmentation:SemanticSegmentation",
    "seq2seq": "handlers.seq2seq:Seq2seq",
    "tensor": "handlers.tensor:TensorHandler",
}


def load_handler(bundle: Bundle, runtime: Runtime) -> Handler:
    """Verify a bundle and build its handler; heavy modules are imported only now.

    Raises:
        CorruptBundle: a file differs from its checksum.
        ValueError: no handler is known for the algorithm.
    """
    bundle.verify()
    target = _HANDLERS.get(bundle.manifest.algorithm)
    if target is None:
        raise ValueError(f"no handler for algorithm '{bundle.manifest.algorithm}'; known: {', '.join(_HANDLERS)}")
    module, _, name = target.partition(":")
    handler: Handler = getattr(import_module(module), name)(bundle, runtime)
    return handler
