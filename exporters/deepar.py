"""A trained DeepAR as a bundle: history and noise in, sample paths out; the whole sampling loop is one graph.

TorchScript keeps the loops over steps. ONNX has them unrolled: its loops copy the paths so far at each step.
"""

# N series, S samples, P steps, F features, W noise

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from exporters.graphs import ParityError, load_script, onnx_session, write_onnx, write_traced
from formats.errors import InvalidBody
from formats.forecasting import Configuration, Horizon, answers, graph_inputs, uniform_noise
from formats.time_frequency import Frequency
from formats.timeseries import parse_series
from model_store.manifest import Batching, Golden, Graph, Manifest, Mode, ParityCase, TensorSpec
from trainers.checkpoints import load
from trainers.deepar.model import Network, Sampler, Sizes
from trainers.earlier_model import MODEL_WEIGHTS
from trainers.job import ClientError

__all__ = ["PARITY_TOLERANCE", "load_sampler", "write_bundle"]

PARITY_TOLERANCE = 1e-3
"""Largest difference of any sample, in mean absolute samples, or in its path's largest where that is more: a path feeds
on itself, step by step, and Student's t leaps by a hundred scales now and then."""
_SHARE_OF_CHOICES = 0.02
"""Of paths that may differ where samples are made of decisions (counts, rejections), which last bits can turn."""

_GRAPH = "model"
_CONTENT_TYPES = ["application/json", "application/jsonlines"]
_PARITY_SIZES = ((1, 1, 0), (3, 20, 50), (2, 100, 400))
"""Series, samples, known steps."""
_CHOOSING = ("beta", "negative-binomial")
_DRAWS = 3
"""Of noise, where one path may turn by chance, and is too large a share of few."""
_GOLDEN_SAMPLES = 20
_AXES = {
    "target": {0: "series", 1: "known"},
    "observed": {0: "series", 1: "known"},
    "features": {0: "series"},
    "noise": {0: "series", 1: "samples"},
    "category": {0: "series"},
    "samples": {0: "series", 1: "samples"},
}


def write_bundle(checkpoint: Path, description: dict[str, Any], directory: Path) -> Manifest:
    """Write every file of the bundle but its manifest, which is returned unsealed.

    Args:
        checkpoint: what training left in `OUTPUT/model`.
        description: its `model.json`.
        directory: an empty directory.

    Raises:
        ParityError: an exported graph answers differently from the model.
        ClientError: the weights are not of the network that the description names.
    """
    sampler = load_sampler(checkpoint, description)
    sizes, values = sampler.network.sizes, description["hyperparameters"]
    inputs = _inputs(sizes, sampler.likelihood.num_noise)
    names = [spec.name for spec in inputs]
    _write_graphs(directory, sampler, names)
    parity = [_compare(directory, sampler, names, size) for size in _PARITY_SIZES]
    mode = Mode(
        graph=_GRAPH,
        placement=["cpu", "gpu"],
        content_types=_CONTENT_TYPES,
        accepts=_CONTENT_TYPES,
        batching=Batching(max_batch_size=64, max_batch_seconds=0.5),
    )
    output = TensorSpec(name="samples", datatype="FP32", shape=[-1, -1, sizes.prediction_length])
    return Manifest(
        algorithm="deepar",
        default_mode="predict",
        modes={"predict": mode},
        graphs={
            _GRAPH: Graph(onnx=f"{_GRAPH}.onnx", torchscript=f"{_GRAPH}.pt", inputs=inputs, outputs=[output]),
        },
        golden=_write_golden(directory, sampler, description),
        hyperparameters=values,
        settings={
            "time_freq": values["time_freq"],
            "context_length": sizes.context_length,
            "prediction_length": sizes.prediction_length,
            "history": sizes.history,
            "cardinalities": list(sizes.cardinalities),
            "num_dynamic": description["num_dynamic"],
            "num_noise": sampler.likelihood.num_noise,
            "likelihood": sizes.likelihood,
            "inference_configuration": _inference_configuration(description),
        },
        metrics=description["metrics"],
        parity_tolerance=PARITY_TOLERANCE,
        parity=parity,
    )


def _write_graphs(directory: Path, sampler: Sampler, names: list[str]) -> None:
    sample = _made(sampler, 2, 3, 5)
    file = directory / f"{_GRAPH}.onnx"
    write_onnx(
        file,
        sampler,
        sample,
        inputs=names,
        outputs=["samples"],
        varying={name: _AXES[name] for name in (*names, "samples")},
        traced=True,
    )
    _fold(file)
    compiled = Sampler(sampler.network).eval()
    compiled.script_loops(sample)
    write_traced(directory / f"{_GRAPH}.pt", compiled, sample)


def _fold(file: Path) -> None:
    """Compute what is the same in each run, here instead of each time that it is loaded: half of the loading time."""
    import onnxruntime as ort  # noqa: PLC0415

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # stays within ONNX's operators
    options.optimized_model_filepath = str(file)
    options.log_severity_level = 3
    ort.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    model = onnx.load(str(file))
    used = [each for each in model.opset_import if not each.domain]
    del model.opset_import[:]
    model.opset_import.extend(used)
    onnx.checker.check_model(model)
    onnx.save(model, str(file))


def _inference_configuration(description: dict[str, Any]) -> str:
    """JSON text of what holds for requests that have none: as given to the export, the rest as in the contract.

    Raises:
        ClientError: names the field, its value, and what was expected.
    """
    try:
        found = Configuration.of(description.get("inference_configuration"), None, "the inference configuration")
    except InvalidBody as error:
        raise ClientError(str(error)) from error
    return json.dumps(asdict(found))


def load_sampler(checkpoint: Path, description: dict[str, Any]) -> Sampler:
    """The trained model as it is served.

    Raises:
        ClientError: the weights are not of the network that the description names.
    """
    sizes = dict(description["sizes"])
    network = Network(Sizes(**sizes | {name: tuple(sizes[name]) for name in ("lags", "cardinalities")}))
    try:
        network.load_state_dict(load(checkpoint / MODEL_WEIGHTS))
    except RuntimeError as error:
        raise ClientError(f"{checkpoint / MODEL_WEIGHTS} does not fit {sizes}: {error}") from error
    sampler = Sampler(network).eval()
    return sampler.requires_grad_(requires_grad=False)


def horizon_of(sampler: Sampler, description: dict[str, Any]) -> Horizon:
    """What a series must hold for this model."""
    sizes = sampler.network.sizes
    return Horizon(
        frequency=Frequency.parse(description["hyperparameters"]["time_freq"]),
        history=sizes.history,
        context_length=sizes.context_length,
        prediction_length=sizes.prediction_length,
        cardinalities=sizes.cardinalities,
        num_dynamic=description["num_dynamic"],
        num_noise=sampler.likelihood.num_noise,
        likelihood=sizes.likelihood,
    )


def _inputs(sizes: Sizes, num_noise: int) -> list[TensorSpec]:
    steps = sizes.context_length + sizes.prediction_length
    specs = [
        TensorSpec(name="target", datatype="FP32", shape=[-1, -1]),
        TensorSpec(name="observed", datatype="FP32", shape=[-1, -1]),
        TensorSpec(name="features", datatype="FP32", shape=[-1, steps, sizes.num_features]),
        TensorSpec(name="noise", datatype="FP32", shape=[-1, -1, sizes.prediction_length, num_noise]),
    ]
    if sizes.cardinalities:
        specs.append(TensorSpec(name="category", datatype="INT64", shape=[-1, len(sizes.cardinalities)]))
    return specs


def _made(sampler: Sampler, num_series: int, num_samples: int, known: int, draw: int = 0) -> tuple[Tensor, ...]:
    """Inputs by a stated rule: positive targets about the scale that the model knows, an eighth of them missing."""
    sizes = sampler.network.sizes
    random = np.random.default_rng((num_series, num_samples, known, draw))
    scale = float(sampler.network.default_scale) if sampler.likelihood.scaled else 0.5
    target = random.uniform(0.2, 1.8, (num_series, known)) * scale
    if sizes.likelihood == "negative-binomial":
        target = np.round(target)
    observed = random.random((num_series, known)) < 7 / 8
    steps = sizes.context_length + sizes.prediction_length
    features = random.uniform(-0.5, 0.5, (num_series, steps, sizes.num_features))
    shape = (num_series, num_samples, sizes.prediction_length, sampler.likelihood.num_noise)
    made = [
        torch.from_numpy(target.astype(np.float32)),
        torch.from_numpy(observed.astype(np.float32)),
        torch.from_numpy(features.astype(np.float32)),
        torch.from_numpy(uniform_noise(shape, random)),
    ]
    if sizes.cardinalities:
        made.append(torch.from_numpy(random.integers(0, sizes.cardinalities, (num_series, len(sizes.cardinalities)))))
    return tuple(made)


def _compare(directory: Path, sampler: Sampler, names: list[str], size: tuple[int, int, int]) -> ParityCase:
    """The errors of both forms on inputs of a size.

    Where samples are decisions, the last bit of a number may turn one, and the path goes another way from there: a few
    in a hundred may. A lone path that turns says nothing, so another one is drawn; a wrong graph is wrong each time.
    """
    draws = _DRAWS if sampler.likelihood.kind in _CHOOSING else 1
    for draw in range(draws):
        errors = _errors(directory, sampler, names, _made(sampler, *size, draw))
        worst = max(errors, key=lambda form: errors[form] if np.isfinite(errors[form]) else np.inf)
        if errors[worst] <= PARITY_TOLERANCE:
            return ParityCase(
                graph=_GRAPH,
                batch_size=size[0],
                torchscript_max_abs_error=errors["TorchScript"],
                onnx_max_abs_error=errors["ONNX"],
            )
    raise ParityError(
        f"{worst} of graph '{_GRAPH}' strays by {errors[worst]:g} scales on {size}; allowed is {PARITY_TOLERANCE:g}; "
        "nothing is exported"
    )


def _errors(directory: Path, sampler: Sampler, names: list[str], sample: tuple[Tensor, ...]) -> dict[str, float]:
    """By form, the largest difference of any path, as `PARITY_TOLERANCE` counts; of decisions, without a few paths."""
    with torch.inference_mode():
        expected = sampler(*sample).numpy()
        scripted = load_script(directory / f"{_GRAPH}.pt")(*sample).numpy()
    feed = {name: value.numpy() for name, value in zip(names, sample, strict=True)}
    (answered,) = onnx_session(directory / f"{_GRAPH}.onnx").run(["samples"], feed)
    scale_NS = np.maximum(np.abs(expected).max(axis=2), max(float(np.abs(expected).mean()), 1e-9))
    allowed = _SHARE_OF_CHOICES if sampler.likelihood.kind in _CHOOSING else 0.0
    errors = {}
    for form, found in (("TorchScript", scripted), ("ONNX", answered)):
        by_path = (np.abs(expected - found).max(axis=2) / scale_NS).ravel()
        errors[form] = float(np.sort(by_path)[len(by_path) - 1 - int(allowed * len(by_path))])
    return errors


def _write_golden(directory: Path, sampler: Sampler, description: dict[str, Any]) -> Golden:
    """A short history, with a seed; the answer is made by the handler's own steps on the eager model."""
    sizes = sampler.network.sizes
    scale = float(sampler.network.default_scale) if sampler.likelihood.scaled else 0.5
    history = [scale * (1 + 0.25 * (step % 4 - 1.5)) for step in range(12)]
    if sizes.likelihood == "negative-binomial":
        history = [float(round(value)) for value in history]
    instance: dict[str, Any] = {"start": "2024-01-01 00:00:00", "target": history}
    if sizes.cardinalities:
        instance["cat"] = [0] * len(sizes.cardinalities)
    if description["num_dynamic"]:
        instance["dynamic_feat"] = [[0.0] * (12 + sizes.prediction_length)] * description["num_dynamic"]
    # all of it, so that no default of a bundle or a worker changes the answer
    configuration = asdict(Configuration(num_samples=_GOLDEN_SAMPLES, output_types=("mean",), seed=1))
    request = {"instances": [instance], "configuration": configuration}
    (directory / "golden.request.json").write_text(json.dumps(request))
    wanted = Configuration.of(configuration)
    made = graph_inputs([parse_series(instance)], horizon_of(sampler, description), wanted)
    with torch.inference_mode():
        samples = sampler(*(torch.from_numpy(value) for value in made.values())).numpy()
    predictions = [{"mean": each["mean"].tolist()} for each in answers(samples, wanted)]
    (directory / "golden.json").write_text(json.dumps({"predictions": predictions}))
    # one path of twenty may turn at a decision
    loose = 0.2 if sampler.likelihood.kind in _CHOOSING else PARITY_TOLERANCE
    scale = max(scale, float(np.abs(samples).max()) / _GOLDEN_SAMPLES)
    return Golden(
        request="golden.request.json",
        content_type="application/json",
        accept="application/json",
        mode="predict",
        response="golden.json",
        tolerance=loose * max(scale, 1.0 if sampler.likelihood.kind == "negative-binomial" else 0.0),
    )
