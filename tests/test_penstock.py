"""The command line: quick to start, and every wrong input is one clear line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from model_store.manifest import MANIFEST
from model_store.store import Store
from penstock import app
from tests.bundles import write_tiny_classifier
from tests.model_store.bundles import write_plain_bundle

_ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PENSTOCK_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def complaint(*arguments: object) -> str:
    """What the command says on standard error, which must be one line, when it ends with status 1."""
    result = run(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception  # no traceback
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("penstock: ")
    return result.stderr.removeprefix("penstock: ").strip()


def test_help_needs_no_heavy_module_and_no_second() -> None:
    heavy = "{'torch', 'onnxruntime', 'onnx', 'numpy', 'grpc', 'fastapi', 'uvicorn', 'pydantic', 'PIL'}"
    script = f"import sys, penstock, typer; typer.main.get_command(penstock.app); print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=_ROOT, check=True)
    assert found.stdout.strip() == "set()"

    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "penstock", "--help"], capture_output=True, cwd=_ROOT, check=True)
        seconds.append(time.perf_counter() - start)
        assert b"publish" in done.stdout
    assert min(seconds) < 1.0  # 0.3 s on a quiet machine


@pytest.mark.parametrize("command", ["train", "export", "publish", "models", "serve", "predict", "load"])
def test_every_command_explains_itself(command: str) -> None:
    assert run(command, "--help").exit_code == 0


@pytest.mark.parametrize("arguments", [["fly"], ["train"], ["publish", "x"], ["models", "--colour"], ["export"]])
def test_a_usage_error_ends_with_status_2(arguments: list[str]) -> None:
    result = run(*arguments)

    assert result.exit_code == 2
    assert "Usage" in result.stderr


def test_publish_prints_where_the_version_is(tmp_path: Path, store: Path) -> None:
    bundle = write_tiny_classifier(tmp_path / "bundle")

    result = run("publish", bundle, "--name", "tiny", "--store", store)

    assert result.exit_code == 0
    assert result.stdout == f"tiny version 1: {store}/tiny/1\n"
    assert (store / "tiny" / "1" / "tiny.mar").is_file()


def test_the_store_may_come_from_the_environment(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_STORE", str(store))

    run("publish", write_plain_bundle(tmp_path / "bundle"), "--name", "m")

    assert Store(store).versions("m") == ["1"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere", "--name", "m"], "nowhere: manifest.json is missing or not a plain file"),
        (["bundle", "--name", "a/b"], "model name 'a/b' must be a letter and then"),
        (["bundle", "--name", "stats"], "not one of: stats"),
        (["bundle", "--name", ""], "model name ''"),
        (["bundle", "--name", "m", "--version", "../1"], "version '../1' must be 1 to 32"),
        (["bundle", "--name", "m", "--version", ""], "version '' must be 1 to 32"),
        (["bundle", "--name", "m", "--version", "7"], "m version 7 is published already; versions are immutable"),
        (["broken", "--name", "m"], "labels.txt does not match its checksum"),
        (["bundle", "--name", "m", "--store", "text"], "store text is not a directory"),
        (["bundle", "--name", "m", "--store", "text/store"], "text/store"),
        (["text", "--name", "m"], "text is a file, not a bundle"),
        (["text", "--name", "m", "--algorithm", "tensor"], "text is not a valid ONNX file (text: 'hello')"),
        (["text", "--name", "m", "--algorithm", "alchemy"], "--algorithm alchemy: only `tensor`"),
        (["nowhere", "--name", "m", "--algorithm", "tensor"], "No such file"),
        (["bundle", "--name", "m", "--algorithm", "tensor"], "Is a directory"),
        (["bundle", "--name", "m", "--input", "x:FP32:1"], "--input: only for a graph file and --algorithm tensor"),
        (
            ["bundle", "--name", "m", "--no-batched", "--bucket-bytes", "9"],
            "--batched, --bucket-bytes: only for a graph file and --algorithm tensor",
        ),
        (["text", "--name", "m", "--algorithm", "tensor", "--input", "x"], "expected NAME:DATATYPE:SHAPE"),
    ],
)
def test_what_cannot_be_published_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_plain_bundle(Path("bundle"))
    (write_plain_bundle(Path("broken")) / "labels.txt").write_text("c")
    Path("text").write_text("hello")
    run("publish", "bundle", "--name", "m", "--version", "7", "--store", "store")

    where = [] if "--store" in arguments else ["--store", "store"]
    assert text in complaint("publish", *arguments, *where)
    assert Store(Path("store")).versions("m") == ["7"]
    assert [p.name for p in Path("store").iterdir()] == ["m"]


def test_a_torchscript_file_is_published_with_a_stated_signature(tmp_path: Path, store: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit, which is what is served
        torch.jit.trace(torch.nn.ReLU(), torch.zeros(1, 16)).save(tmp_path / "m.pt")  # type: ignore[no-untyped-call]
    signature = ["--input", "x:FP32:-1,16", "--output", "y:FP32:-1,16"]

    result = run("publish", tmp_path / "m.pt", "--algorithm", "tensor", "--name", "relu", "--store", store, *signature)

    assert result.exit_code == 0, result.stderr
    manifest = Store(store).open("relu").manifest
    assert (manifest.algorithm, manifest.graphs["model"].inputs[0].shape) == ("tensor", [-1, 16])
    assert "state every input" in complaint(
        "publish", tmp_path / "m.pt", "--algorithm", "tensor", "--name", "m", "--store", store
    )


def test_how_a_graph_file_is_batched_is_found_out_or_stated(tmp_path: Path, store: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit, which is what is served
        torch.jit.trace(torch.nn.Softmax(0), torch.zeros(1, 4)).save(tmp_path / "m.pt")  # type: ignore[no-untyped-call]
    graph = ["publish", tmp_path / "m.pt", "--algorithm", "tensor", "--name", "m", "--store", store]
    graph += ["--input", "x:FP32:-1,4", "--output", "y:FP32:-1,4"]

    found = run(*graph)
    stated = run(*graph, "--batched", "--max-batch-size", "9", "--max-batch-seconds", "0.2", "--bucket-bytes", "64",
                 "--bucket-bytes", "256")  # fmt: skip
    refused = run(*graph, "--bucket-bytes", "64", "--bucket-bytes", "32")

    assert "requests will not share runs of the graph: output 0" in found.stderr
    assert not Store(store).open("m", "1").manifest.graphs["model"].batched
    assert (stated.exit_code, stated.stderr) == (0, "")
    manifest = Store(store).open("m", "2").manifest
    assert manifest.graphs["model"].batched
    batching = manifest.modes["predict"].batching
    assert (batching.max_batch_size, batching.max_batch_seconds, batching.bucket_bytes) == (9, 0.2, [64, 256])
    assert refused.exit_code == 1
    assert "bucket_bytes: Value error, bounds must ascend" in refused.stderr


def test_models_lists_what_is_published(tmp_path: Path, store: Path) -> None:
    for _ in range(2):
        run("publish", write_plain_bundle(tmp_path / f"b{_}"), "--name", "digits", "--store", store)

    result = run("models", "--store", store)

    assert result.exit_code == 0
    assert result.stdout.count("digits") == 2
    assert "predict (cpu)" in result.stdout
    assert result.stderr == ""


def test_models_shows_every_broken_version_and_ends_with_status_1(tmp_path: Path, store: Path) -> None:
    bundle = write_plain_bundle(tmp_path / "bundle")
    whole, flipped, altered, missing = (Store(store).publish(bundle, name="m").path for _ in range(4))
    for file in (flipped / "labels.txt", altered / MANIFEST):
        file.chmod(0o600)
        file.write_bytes(file.read_bytes() + b" ")
    (missing / MANIFEST).unlink()

    result = run("models", "--store", store)

    assert result.exit_code == 1
    assert result.stdout.count("broken") == 2
    assert [line for line in result.stderr.splitlines() if f"m/{whole.name}" in line] == []
    for path, text in ((flipped, "labels.txt does not match"), (altered, "manifest.json does not match")):
        assert any(f"m/{path.name}" in line and text in line for line in result.stderr.splitlines())
    assert f"m/{missing.name}: manifest.json is missing" in result.stderr


def test_models_of_a_store_that_is_not_there_yet_are_none(store: Path) -> None:
    assert run("models", "--store", store).exit_code == 0


@pytest.mark.parametrize("command", [["models"], ["serve"]])
def test_a_store_that_is_a_file_is_named(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "file").touch()

    assert complaint(*command, "--store", tmp_path / "file") == f"store {tmp_path / 'file'} is not a directory"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("htp_port = 1", "invalid value: htp_port: Extra inputs are not permitted (found 1)"),
        ("http_port = 'x'", "http_port: Input should be a valid integer"),
        ("http_port = 70000", "http_port: Input should be less than or equal to 65535 (found 70000)"),
        ("[pools.cpu]\ndevice = 'tpu'", "pools.cpu.device: Input should be 'cpu' or 'gpu' (found 'tpu')"),
        ("http_port = ", "config.toml is not TOML"),
        ("\x00", "config.toml is not TOML"),
    ],
)
def test_a_wrong_configuration_is_told_by_field(tmp_path: Path, store: Path, text: str, told: str) -> None:
    (tmp_path / "config.toml").write_text(text)

    assert told in complaint("serve", "--config", tmp_path / "config.toml", "--store", store)


def test_a_missing_configuration_is_told(tmp_path: Path, store: Path) -> None:
    assert "no configuration file" in complaint("serve", "--config", tmp_path / "none.toml", "--store", store)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--channel", "train"], "--channel train: expected NAME=VALUE"),
        (["--channel", "=data"], "--channel =data: expected NAME=VALUE"),
        (["--channel", "train="], "--channel train=: expected NAME=DIR, each with a directory"),
        (["--channel", "train=a", "--channel", "train=b"], "--channel train=b: 'train' is given twice"),
        (["--channel", "train=a", "--set", "epochs"], "--set epochs: expected NAME=VALUE"),
        (["--channel", "train=a", "--set", "e=1", "--set", "e=2"], "'e' is given twice"),
        (["--channel", "train=a", "--hyperparameters", "none.json"], "none.json: No such file or directory"),
        (["--channel", "train=a", "--hyperparameters", "text"], "text is not JSON: Expecting value"),
        (["--channel", "train=a", "--hyperparameters", "bytes"], "bytes is not JSON"),
        (["--channel", "train=a", "--hyperparameters", "list"], "list: expected a JSON object of hyperparameters"),
    ],
)
def test_wrong_training_options_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("hello")
    Path("bytes").write_bytes(b"\xff\xfe\xfd")
    Path("list").write_text("[1]")

    assert text in complaint("train", "image_classification", "--output", "out", *options)


def test_an_unknown_algorithm_is_told_with_the_known_ones(tmp_path: Path) -> None:
    assert "image_classification" in complaint("train", "alchemy", "--channel", "train=a", "--output", tmp_path / "out")


def test_what_is_no_checkpoint_cannot_be_exported(tmp_path: Path) -> None:
    assert "is not a checkpoint" in complaint("export", tmp_path, "--output", tmp_path / "bundle")


@pytest.fixture
def body(tmp_path: Path) -> Path:
    (tmp_path / "body.json").write_text("{}")
    return tmp_path / "body.json"


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_predict_without_a_gateway_says_so(body: Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}"

    assert complaint("predict", "m", body, "--url", url).startswith(f"no gateway at {url}: ")


def test_predict_waits_as_long_as_it_is_told(body: Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    began = time.monotonic()

    assert complaint("predict", "m", body, "--url", url, "--wait", "0.5").startswith(f"no gateway at {url}: ")
    assert time.monotonic() - began > 0.5


def test_predict_against_something_else_says_so(body: Path) -> None:
    """A server that closes the connection without an answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with subprocess.Popen(
            [sys.executable, "-m", "penstock", "predict", "a b", str(body), "--url", url],
            stderr=subprocess.PIPE,
            cwd=_ROOT,
        ) as client:
            connection, _ = server.accept()
            with connection:
                request = connection.recv(4096)
            _, told = client.communicate(timeout=30)

    assert request.startswith(b"POST /endpoints/a%20b/invocations HTTP/1.1\r\n")
    assert client.returncode == 1
    assert told.startswith(f"penstock: no answer from {url}: ".encode())
    assert told.count(b"\n") == 1


@pytest.mark.parametrize(("kind", "end"), [("image/png", b""), ("application/json", b"\n")])
def test_an_answer_that_is_no_text_is_printed_byte_by_byte(body: Path, kind: str, end: bytes) -> None:
    """So that `penstock predict ... > mask.png` makes a file as the gateway sent it."""
    answer = bytes(range(256))
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with subprocess.Popen(
            [sys.executable, "-m", "penstock", "predict", "m", str(body), "--url", url, "--accept", kind],
            stdout=subprocess.PIPE,
            cwd=_ROOT,
        ) as client:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: 256\r\n\r\n"
                connection.sendall(head.encode() + answer)
                printed, _ = client.communicate(timeout=30)

    assert printed == answer + end


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["m", "none.json"], "No such file"),
        (["m", "."], "Is a directory"),
        (["m", "body.json", "--url", "localhost:8080"], "--url localhost:8080: expected http://HOST:PORT"),
        (["m", "body.json", "--url", "file:///etc"], "expected http://HOST:PORT"),
        (["m", "body.json", "--url", "http://127.0.0.1:port"], "no answer from http://127.0.0.1:port"),
        (["m", "body.json", "--content-type", "a/b\r\nx: y"], "no answer"),
    ],
)
def test_wrong_predictions_are_told_in_one_line(
    body: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], text: str
) -> None:
    monkeypatch.chdir(body.parent)

    assert text in complaint("predict", *options)
