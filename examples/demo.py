"""`make run`: from real images to predictions over every protocol, then keep serving.

Each step is a command that a user would type, and is printed; what is done already is skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message

from examples.dates import as_tokens, write_dates
from examples.deepar_synthetic import write_series
from examples.digits import CLASS_NAMES, write_digits
from examples.docstrings import write_text
from examples.purposes import ids_of, write_purposes
from examples.scattered_digits import NUM_SCENES, write_scenes
from formats.detection import corners, decode_annotation
from formats.images import decode, resize
from formats.masks import decode_mask
from formats.protos import open_inference_pb2, torchserve_pb2
from gateway.settings import Settings, read_settings

__all__ = ["main"]

MessageT = TypeVar("MessageT", bound=Message)

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".run"
NAME = "digits"
_OF_SCENES = {"boxes": "object_detection", "ink": "semantic_segmentation"}
"""Other models by name; each one's hyperparameters lie in a file of that name."""
TOPICS = "topics"
_QUESTIONS = {
    "return the event loop that runs the coroutine": "asyncio",
    "the header of a message as it was parsed": "email",
    "fail unless the two values are equal": "unittest",
}
WAVES = "waves"
_WITHHELD = 24
DATES = "dates"
_WRITTEN = {
    "24 December 1998": "1998-12-24",
    "Fri 13 Nov 26": "2026-11-13",
    "the 05th of May 2031": "2031-05-05",
}
PURPOSES = "purposes"
_NUM_WITHHELD = 6
_START_TIMEOUT_S = 60.0


def main(arguments: list[str]) -> int:
    """Make what is missing, serve, predict; then wait for Ctrl-C unless `--once` is given."""
    store = Path(os.environ.setdefault("PENSTOCK_STORE", str(WORK / "store")))
    if not (store / NAME).is_dir():
        _make_digits(store)
    for name, algorithm in _OF_SCENES.items():
        if not (store / name).is_dir():
            _make_model_of_scenes(store, name, algorithm)
    if not (store / TOPICS).is_dir():
        _make_model_of_texts(store)
    if not (store / WAVES).is_dir():
        _make_model_of_series(store)
    if not (store / DATES).is_dir():
        _make_model_of_dates(store)
    if not (store / PURPOSES).is_dir():
        _make_model_of_purposes(store)
    os.environ.setdefault("PENSTOCK_DEFAULT_ENDPOINT", NAME)  # what /invocations asks where several models are served
    settings = read_settings()
    with _foreground(), _serving(settings) as server:
        _wait_until_ready(settings, server)
        _show_predictions(settings)
        _show_boxes(settings)
        _show_mask(settings)
        _show_topics(settings)
        _show_forecast(settings)
        _show_dates(settings)
        _show_purposes(settings)
        if "--once" not in arguments:
            print("\nServing until Ctrl-C.", flush=True)
            while server.poll() is None:
                with contextlib.suppress(KeyboardInterrupt):
                    server.wait()
    return server.returncode


def _make_digits(store: Path) -> None:
    data = WORK / "digits"
    if not (data / "validation" / "validation.lst").exists():
        counts = write_digits(data)
        print(f"wrote scikit-learn's handwritten digits to {data.relative_to(ROOT)}: {counts}")
    _make_model(store, NAME, "image_classification", {part: data / part for part in ("train", "validation")})


def _make_model_of_scenes(store: Path, name: str, algorithm: str) -> None:
    data = WORK / "scenes"
    if not (data / "validation_masks").is_dir():
        print(f"wrote scenes of scattered digits to {data.relative_to(ROOT)}: {write_scenes(data)}")
    truths = "boxes" if algorithm == "object_detection" else "masks"
    channels = {part: data / part for part in NUM_SCENES}
    channels |= {f"{part}_annotation": data / f"{part}_{truths}" for part in NUM_SCENES}
    _make_model(store, name, algorithm, channels)


def _make_model_of_texts(store: Path) -> None:
    data = WORK / "docstrings"
    if not (data / "validation" / "text").exists():
        print(f"wrote sentences of Python's docstrings to {data.relative_to(ROOT)}: {write_text(data)}")
    _make_model(store, TOPICS, "blazingtext", {part: data / part for part in ("train", "validation")})


def _make_model_of_series(store: Path) -> None:
    data = WORK / "noisy-waves"
    if not (data / "test" / "test.json").exists():
        write_series(data)
        print(f"wrote 200 noisy waves of an hour's step to {data.relative_to(ROOT)}")
    _make_model(store, WAVES, "deepar", {"train": data / "train"})


def _make_model_of_dates(store: Path) -> None:
    data = WORK / "dates"
    if not (data / "done").exists():
        print(f"writing dates in many forms to {data.relative_to(ROOT)}: {write_dates(data)}")
    _make_model(store, DATES, "seq2seq", {part: data / part for part in ("train", "validation", "vocab")})


def _make_model_of_purposes(store: Path) -> None:
    data = WORK / "purposes"
    if not (data / "withheld.json").exists():
        print(f"wrote functions' names and purposes to {data.relative_to(ROOT)}: {write_purposes(data)}")
    _make_model(store, PURPOSES, "object2vec", {part: data / part for part in ("train", "validation")})


def _make_model(store: Path, name: str, algorithm: str, channels: Mapping[str, Path]) -> None:
    """Train with the hyperparameters in the file of the model's name, export, and publish."""
    trained, bundle = WORK / f"trained-{name}", WORK / f"bundle-{name}"
    _penstock(
        *("train", algorithm),
        *(part for channel, path in channels.items() for part in ("--channel", f"{channel}={path}")),
        *("--hyperparameters", str(Path(__file__).with_name(f"{name}.json")), "--output", str(trained)),
    )
    shutil.rmtree(bundle, ignore_errors=True)
    _penstock("export", str(trained), "--output", str(bundle))
    _penstock("publish", str(bundle), "--name", name, "--store", str(store))


def _penstock(*arguments: str) -> None:
    print(f"\n$ penstock {shlex.join(arguments)}".replace(f"{ROOT}/", ""), flush=True)
    subprocess.run([sys.executable, "-m", "penstock", *arguments], check=True, cwd=ROOT)


@contextlib.contextmanager
def _foreground() -> Iterator[None]:
    """Be the terminal's foreground group, so that Ctrl-C reaches the server and not the `make` that started this."""
    if not sys.stdin.isatty():
        yield
        return
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    terminal = sys.stdin.fileno()
    before = os.tcgetpgrp(terminal)
    os.setpgid(0, 0)
    os.tcsetpgrp(terminal, os.getpgrp())
    try:
        yield
    finally:
        os.tcsetpgrp(terminal, before)


@contextlib.contextmanager
def _serving(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    print("\n$ penstock serve", flush=True)
    run_dir = settings.run_dir or WORK / "serve"
    environment = {**os.environ, "PENSTOCK_RUN_DIR": str(run_dir)}
    server = subprocess.Popen([sys.executable, "-m", "penstock", "serve"], cwd=ROOT, env=environment)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    try:
        yield server
    finally:
        if server.poll() is None:
            server.terminate()
        while server.poll() is None:
            with contextlib.suppress(KeyboardInterrupt):
                server.wait()


def _wait_until_ready(settings: Settings, server: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < give_up:
        if server.poll() is not None:
            sys.exit(server.returncode or 1)
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{_http(settings)}/ping", timeout=2):
            return
        time.sleep(0.1)
    sys.exit(f"the gateway was not ready within {_START_TIMEOUT_S:g} s; see its log above")


def _show_predictions(settings: Settings) -> None:
    """One held-out image over each protocol; ends with an error when any answer is another digit."""
    image = min((WORK / "digits" / "validation" / "seven").glob("*.png"))
    body = image.read_bytes()
    print(f"\nA held-out image of a seven ({image.relative_to(ROOT)}), over each protocol:\n")
    answers = {
        "SageMaker runtime": _post(settings, f"/endpoints/{NAME}/invocations", body),
        "SageMaker container": _post(settings, "/invocations", body),
        "TorchServe REST": _post(settings, f"/predictions/{NAME}", body),
        "Open Inference Protocol REST": _oip_rest(settings, body),
        "Open Inference Protocol gRPC": _oip_grpc(settings, body),
        "TorchServe gRPC": _torchserve_grpc(settings, body),
    }
    for protocol, (request, scores) in answers.items():
        best = int(np.argmax(scores))
        print(f"{protocol}\n  {request}\n  -> class {best} ({CLASS_NAMES[best]}), probability {scores[best]:.4f}")
    wrong = [
        protocol for protocol, (_, scores) in answers.items() if int(np.argmax(scores)) != CLASS_NAMES.index("seven")
    ]
    if wrong:
        sys.exit(f"not a seven, says: {', '.join(wrong)}")


def _show_boxes(settings: Settings) -> None:
    """The boxes of a held-out scene; ends with an error unless most digits are found."""
    image = WORK / "scenes" / "validation" / "0.png"
    annotation = decode_annotation((WORK / "scenes" / "validation_boxes" / "0.json").read_bytes())
    truths = corners(annotation)[:, 1:]
    body, kind = image.read_bytes(), "application/json;threshold=0.4"
    found = json.loads(_ask(settings, "boxes", body, kind))["prediction"]
    print(f"\nDigits of a held-out scene ({image.relative_to(ROOT)}), found by object detection:\n")
    for row in found:
        print(f"  score {row[1]:.3f}, corners {', '.join(f'{each:.3f}' for each in row[2:])}")
    missed = [truth for truth in truths if not any(_overlap(truth, row[2:]) > 0.5 for row in found)]
    print(f"  -> {len(truths) - len(missed)} of {len(truths)} digits")
    if len(missed) > len(truths) / 2:
        sys.exit(f"not found: digits at {[each.round(3).tolist() for each in missed]}")


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    common = max(width, 0.0) * max(height, 0.0)
    areas = ((each[2] - each[0]) * (each[3] - each[1]) for each in (one, other))
    return common / (sum(areas) - common)


def _show_mask(settings: Settings) -> None:
    """The mask of the same scene; ends with an error unless most of the ink is found."""
    truth = decode_mask((WORK / "scenes" / "validation_masks" / "0.png").read_bytes())
    body = (WORK / "scenes" / "validation" / "0.png").read_bytes()
    mask = decode_mask(_ask(settings, "ink", body, "image/png"))
    both, either = int(((mask == 1) & (truth == 1)).sum()), int(((mask == 1) | (truth == 1)).sum())
    print("\nThe ink of the same scene, found by semantic segmentation:\n")
    for row in mask[::20, ::10]:
        print("  " + "".join("#" if each else "." for each in row))
    print(f"  -> {both} of {int((truth == 1).sum())} pixels of ink, intersection over union {both / either:.2f}")
    if both < either / 2:
        sys.exit("the mask misses most of the ink")


def _show_topics(settings: Settings) -> None:
    """Which package a sentence is about; ends with an error when one is taken for another's."""
    body = json.dumps({"instances": list(_QUESTIONS), "configuration": {"k": 2}}).encode()
    answers = json.loads(_ask(settings, TOPICS, body, "application/json", "application/json"))
    print("\nWhich package of Python's library a sentence is about, by BlazingText:\n")
    for text, answer in zip(_QUESTIONS, answers, strict=True):
        found = ", ".join(
            f"{label.removeprefix('__label__')} {p:.2f}" for label, p in zip(*answer.values(), strict=True)
        )
        print(f"  {text} -> {found}")
    if [answer["label"][0] for answer in answers] != [f"__label__{name}" for name in _QUESTIONS.values()]:
        sys.exit("a sentence is taken for another package's")


def _show_forecast(settings: Settings) -> None:
    """A day that is withheld; ends with an error when most of it lies outside the forecast's 80 % interval."""
    with (WORK / "noisy-waves" / "test" / "test.json").open() as file:
        series = json.loads(file.readline())
    truth = np.array(series["target"][-_WITHHELD:])
    series["target"] = series["target"][:-_WITHHELD]
    configuration = {"num_samples": 200, "output_types": ["quantiles"], "quantiles": ["0.1", "0.5", "0.9"], "seed": 0}
    body = json.dumps({"instances": [series], "configuration": configuration}).encode()
    (answer,) = json.loads(_ask(settings, WAVES, body, "application/json", "application/json"))["predictions"]
    low, middle, high = (np.array(answer["quantiles"][each]) for each in configuration["quantiles"])  # type: ignore[attr-defined]
    print("\nA withheld day of a noisy wave by DeepAR: the 80 % interval (-), the median (o), and what came (*):\n")
    left, right = min(low.min(), truth.min()), max(high.max(), truth.max())
    for hour in range(0, _WITHHELD, 2):
        places = {each: round(60 * (values[hour] - left) / (right - left))
                  for each, values in (("(", low), (")", high), ("o", middle), ("*", truth))}  # fmt: skip
        row = ["-" if places["("] <= at <= places[")"] else " " for at in range(61)]
        row[places["o"]], row[places["*"]] = "o", "*"
        print(f"  {hour:2d} h  " + "".join(row).rstrip())
    inside = int(((truth >= low) & (truth <= high)).sum())
    print(f"  -> {inside} of {_WITHHELD} hours inside")
    if inside < _WITHHELD / 2:
        sys.exit("most of the day lies outside the interval")


def _show_dates(settings: Settings) -> None:
    """Dates in one form, and where the model has looked; ends with an error when one is another day."""
    instances = [{"data": as_tokens(text), "configuration": {"attention_matrix": "true"}} for text in _WRITTEN]
    body = json.dumps({"instances": instances}).encode()
    answers = json.loads(_ask(settings, DATES, body, "application/json", "application/json"))["predictions"]
    print("\nDates as people write them, turned by Seq2seq into those of machines:\n")
    found = [answer["target"].replace(" ", "") for answer in answers]
    for text, day in zip(_WRITTEN, found, strict=True):
        print(f"  {text} -> {day}")
    text, looked = next(iter(_WRITTEN)), np.array(answers[0]["matrix"])
    print("\n  Where it looked for each sign of the first answer:\n")
    print("      " + text.replace(" ", "_"))
    for sign, row in zip(found[0], looked, strict=True):
        print(f"    {sign} " + "".join(" .:oO@"[int(5.99 * weight)] for weight in row).rstrip())
    if found != list(_WRITTEN.values()):
        sys.exit(f"expected {', '.join(_WRITTEN.values())}")


def _show_purposes(settings: Settings) -> None:
    """Which unseen sentence says what a function does; ends with an error when most are another function's."""
    ids = json.loads((WORK / "purposes" / "words.json").read_text())
    withheld = json.loads((WORK / "purposes" / "withheld.json").read_text())
    known = [pair for pair in withheld if all(len(ids_of(text, ids)) == len(text.split()) > 1 for text in pair)]
    chosen = known[:: len(known) // _NUM_WITHHELD][:_NUM_WITHHELD]
    names, purposes = zip(*chosen, strict=True)
    instances = [{"in0": ids_of(name, ids), "in1": ids_of(purpose, ids)} for name in names for purpose in purposes]
    body = json.dumps({"instances": instances}).encode()
    answers = json.loads(_ask(settings, PURPOSES, body, "application/json", "application/json"))["predictions"]
    fit = np.array([answer["scores"][1] for answer in answers]).reshape(len(names), len(purposes))
    print("\nWhat functions of Python's library do, by Object2Vec; each name with the sentence that fits it best:\n")
    for row, name in enumerate(names):
        best = int(fit[row].argmax())
        print(f"  {name} -> {purposes[best]} ({fit[row, best]:.2f}){'' if best == row else ': wrong'}")
    if (fit.argmax(axis=1) == np.arange(len(names))).sum() < len(names) / 2:
        sys.exit("most names are given another's sentence")


def _ask(settings: Settings, name: str, body: bytes, accept: str, content_type: str = "image/png") -> bytes:
    url = f"{_http(settings)}/endpoints/{name}/invocations"
    request = urllib.request.Request(url, body, {"Content-Type": content_type, "Accept": accept})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: bytes = answer.read()
        return found


Answer = tuple[str, list[float]]


def _post(settings: Settings, path: str, body: bytes) -> Answer:
    url = f"{_http(settings)}{path}"
    request = urllib.request.Request(url, body, {"Content-Type": "image/png", "Accept": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return f"curl {url} -H 'content-type: image/png' --data-binary @image.png", json.load(answer)


def _oip_rest(settings: Settings, body: bytes) -> Answer:
    pixels = _pixels(settings, body)
    url = f"{_http(settings)}/v2/models/{NAME}/infer"
    tensor = {"name": "image", "datatype": "UINT8", "shape": pixels.shape, "data": pixels.ravel().tolist()}
    request = urllib.request.Request(url, json.dumps({"inputs": [tensor]}).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return f"POST {url} with the graph's own input: UINT8 {list(pixels.shape)}", json.load(answer)["outputs"][0][
            "data"
        ]


def _oip_grpc(settings: Settings, body: bytes) -> Answer:
    pixels = _pixels(settings, body)
    tensor = {"name": "image", "datatype": "UINT8", "shape": pixels.shape}
    request = open_inference_pb2.ModelInferRequest(
        model_name=NAME,
        inputs=[open_inference_pb2.ModelInferRequest.InferInputTensor(**tensor)],
        raw_input_contents=[pixels.tobytes()],
    )
    answer = _call(
        settings, "inference.GRPCInferenceService/ModelInfer", request, open_inference_pb2.ModelInferResponse
    )
    scores = np.frombuffer(answer.raw_output_contents[0], np.float32).tolist()
    return "inference.GRPCInferenceService/ModelInfer, raw tensor", scores


def _torchserve_grpc(settings: Settings, body: bytes) -> Answer:
    method = "org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
    request = torchserve_pb2.PredictionsRequest(model_name=NAME, input={"data": body})
    return method, json.loads(_call(settings, method, request, torchserve_pb2.PredictionResponse).prediction)


def _call(settings: Settings, method: str, request: Message, answer_type: type[MessageT]) -> MessageT:
    with grpc.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
        call: Callable[..., MessageT] = channel.unary_unary(
            f"/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer_type.FromString,
        )
        return call(request, timeout=60)


def _pixels(settings: Settings, body: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The image as the graph takes it, (1, H, W, 3) uint8: what the handler does for the other protocols."""
    with urllib.request.urlopen(f"{_http(settings)}/v2/models/{NAME}", timeout=60) as answer:
        _, height, width, _ = json.load(answer)["inputs"][0]["shape"]
    return resize(decode(body), height, width)[np.newaxis]


def _http(settings: Settings) -> str:
    return f"http://127.0.0.1:{settings.http_port}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
