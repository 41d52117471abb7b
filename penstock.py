"""The command line that ties the rooms together; each command imports only what it needs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from gateway.server import Gateway
    from gateway.settings import Settings
    from gateway.supervisor import Supervisor
    from model_store.store import Store

__all__ = ["app", "main"]

app = typer.Typer(
    help="Train, export, publish and serve models behind one gRPC/REST gateway.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

data = typer.Typer(help="Make training files, and look into them.", no_args_is_help=True)
app.add_typer(data, name="data")

StoreOption = Annotated[
    Path | None, typer.Option("--store", help="Root of the published models.", envvar="PENSTOCK_STORE")
]


@app.command()
def train(
    algorithm: Annotated[str, typer.Argument(help="For example image_classification.")],
    channel: Annotated[
        list[str] | None, typer.Option(help="A channel and its directory, as NAME=DIR; repeat per channel.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Directory for checkpoints, metrics and the trained model.")
    ] = None,
    hyperparameters: Annotated[Path | None, typer.Option(help="JSON object of hyperparameters.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One hyperparameter, as NAME=VALUE; repeatable.")
    ] = None,
    input_config: Annotated[
        Path | None, typer.Option(help="JSON as in inputdataconfig.json: content types, Pipe mode, attribute names.")
    ] = None,
    container: Annotated[
        bool, typer.Option("--container", help="Take everything from PREFIX, as a container.")
    ] = False,
    prefix: Annotated[Path, typer.Option(help="What stands for /opt/ml, with --container.")] = Path("/opt/ml"),
) -> None:
    """Train a model; prints the checkpoint to export. Started again, it resumes where it was."""
    if container:
        from trainers.container import run_container  # noqa: PLC0415

        raise typer.Exit(run_container(algorithm, prefix))
    if not channel or output is None:
        _fail("--channel and --output are required, or --container")
    values: dict[str, Any] = _read_json_object(hyperparameters) if hyperparameters else {}
    values.update(_pairs(set_ or [], "--set"))
    channels = {name: Path(directory) for name, directory in _pairs(channel, "--channel").items() if directory}
    config = _read_json_object(input_config) if input_config else {}
    if len(channels) < len(channel):  # Path("") would be the current directory
        _fail(f"--channel {' '.join(channel)}: expected NAME=DIR, each with a directory")

    from trainers.job import read_input_config  # noqa: PLC0415
    from trainers.run import train as run  # noqa: PLC0415

    with _user_errors():
        trained = run(algorithm, channels, values, output, read_input_config(config))
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun started, one
        typer.echo(trained)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="What `penstock train` printed.")],
    output: Annotated[Path, typer.Option(help="Directory of the bundle to write.")],
    inference_config: Annotated[
        Path | None, typer.Option(help="DeepAR's default `configuration` of requests, a file of one JSON object.")
    ] = None,
) -> None:
    """Write TorchScript, ONNX and the manifest; refuses when the graphs differ from the model."""
    from exporters.export import export as run  # noqa: PLC0415

    configuration = _read_json_object(inference_config, "settings") if inference_config else None
    with _user_errors():
        typer.echo(run(checkpoint, output, configuration))


@app.command()
def quantize(
    bundle: Annotated[Path, typer.Argument(help="What `penstock export` wrote for a vision algorithm.")],
    output: Annotated[Path, typer.Option(help="Directory of the bundle to write.")],
    images: Annotated[Path, typer.Option(help="Directory of JPEG and PNG files such as the model was trained on.")],
) -> None:
    """Write a bundle that computes in 8 bits: faster on CPUs, a little less exact."""
    from exporters.int8 import quantize as run  # noqa: PLC0415

    with _user_errors():
        typer.echo(run(bundle, images, output))


@app.command()
def publish(
    bundle: Annotated[Path, typer.Argument(help="What `penstock export` wrote, or an ONNX or TorchScript file.")],
    name: Annotated[str, typer.Option(help="A letter, then letters, digits, '_', '.' or '-'.")],
    version: Annotated[str | None, typer.Option(help="Default: one more than the largest published.")] = None,
    store: StoreOption = None,
    algorithm: Annotated[
        str | None, typer.Option(help="`tensor`: publish somebody else's graph file, served on its own tensors.")
    ] = None,
    input_: Annotated[
        list[str] | None,
        typer.Option("--input", help="Of a TorchScript file, as NAME:DATATYPE:SHAPE, like x:FP32:-1,16; repeatable."),
    ] = None,
    output: Annotated[list[str] | None, typer.Option(help="Likewise, in the order of what it returns.")] = None,
    batched: Annotated[
        bool | None,
        typer.Option(
            help="Of a graph file: first axes count independent rows, so that requests may share runs."
            " Default: found out by trying."
        ),
    ] = None,
    max_batch_size: Annotated[int | None, typer.Option(min=1, help="Of a graph file: requests in one call.")] = None,
    max_batch_seconds: Annotated[float | None, typer.Option(help="Likewise: longest that a call should take.")] = None,
    bucket_bytes: Annotated[
        list[int] | None,
        typer.Option(
            help="Likewise: a bound of body sizes, only within two of which requests share a call; ascending."
        ),
    ] = None,
) -> None:
    """Put a bundle into the store, whole or not at all; a running gateway picks it up."""
    from exporters.archive import write_archive  # noqa: PLC0415
    from model_store.store import check_name  # noqa: PLC0415

    root = _open_store(store)
    given = {"max_batch_size": max_batch_size, "max_batch_seconds": max_batch_seconds, "bucket_bytes": bucket_bytes}
    limits = {name: value for name, value in given.items() if value is not None}
    with _user_errors(), _bundle_of(bundle, algorithm, input_ or [], output or [], batched, limits) as directory:
        check_name(name)
        published = root.publish(directory, name=name, version=version, archive=write_archive)
    typer.echo(f"{published.manifest.name} version {published.manifest.version}: {published.path}")


@app.command()
def models(store: StoreOption = None) -> None:
    """List what is published, and whether every file is what was published."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from formats.errors import PenstockError  # noqa: PLC0415

    root = _open_store(store)
    table = Table("name", "version", "algorithm", "modes", "created", "files")
    broken = [f"{path}: manifest.json is missing" for path in root.unreadable()]
    for name in root.names():
        for version in root.versions(name):
            try:
                bundle = root.open(name, version)
                bundle.verify()
            except PenstockError as error:
                broken.append(str(error))
                table.add_row(name, version, "", "", "", "[red]broken")
                continue
            m = bundle.manifest
            modes = ", ".join(f"{mode} ({'>'.join(spec.placement)})" for mode, spec in m.modes.items())
            table.add_row(name, version, m.algorithm, modes, m.created, "ok")
    Console().print(table)
    for text in broken:  # beside the table: its columns would cut a path in two
        typer.echo(f"penstock: {text}", err=True)
    raise typer.Exit(1 if broken else 0)


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help="TOML file; PENSTOCK_* variables go before it.")] = None,
    store: StoreOption = None,
    processes: Annotated[
        int | None, typer.Option(help="Gateway processes on the same ports.", envvar="PENSTOCK_PROCESSES")
    ] = None,
) -> None:
    """Serve the store until Ctrl-C or SIGTERM, which drain and end with status 0."""
    import asyncio  # noqa: PLC0415
    import tomllib  # noqa: PLC0415

    # workers are started by fork and exec: gRPC's fork handlers have nothing to do but to warn
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

    import uvloop  # noqa: PLC0415

    from formats.errors import PenstockError  # noqa: PLC0415
    from gateway.logs import configure_logs  # noqa: PLC0415
    from gateway.settings import read_settings  # noqa: PLC0415

    _open_store(store)
    try:
        settings = read_settings(config, store=store, processes=processes)
        configure_logs(settings.log_format)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serving(settings))
    except tomllib.TOMLDecodeError as error:
        _fail(f"{config} is not TOML: {error}")
    except (PenstockError, OSError, ValueError) as error:
        _fail(_one_line(error))


@app.command()
def predict(
    endpoint: Annotated[str, typer.Argument(help="Name of an endpoint or model.")],
    file: Annotated[Path, typer.Argument(help="The request body; - reads standard input.")],
    url: Annotated[str, typer.Option(help="Where the gateway listens.")] = "http://127.0.0.1:8080",
    content_type: Annotated[str | None, typer.Option(help="Default: guessed from the file's name.")] = None,
    accept: Annotated[str, typer.Option(help="Wanted media type of the answer.")] = "application/json",
    plot: Annotated[Path | None, typer.Option(help="Draw DeepAR's forecasts to this PNG.")] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for a gateway that starts, and for the model to load.")
    ] = 0.0,
) -> None:
    """Send one request over the SageMaker runtime protocol and print the answer."""
    import http.client  # noqa: PLC0415
    import mimetypes  # noqa: PLC0415
    import urllib.error  # noqa: PLC0415
    import urllib.parse  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    with _user_errors():
        body = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    guessed = content_type or mimetypes.guess_type(file.name)[0] or "application/json"
    quoted = urllib.parse.quote(endpoint, safe="")
    address = f"{url.rstrip('/')}/endpoints/{quoted}/invocations"
    if not address.startswith(("http://", "https://")):
        _fail(f"--url {url}: expected http://HOST:PORT or https://HOST:PORT")
    _wait_for(quoted, url.rstrip("/"), wait)
    try:
        request = urllib.request.Request(address, body, {"Content-Type": guessed, "Accept": accept})  # noqa: S310
        with urllib.request.urlopen(request, timeout=70) as answer:  # noqa: S310
            kind = answer.headers.get_content_type()
            # a mask or a tensor goes into a file as it is
            end = b"\n" if kind.startswith("text/") or "json" in kind else b""
            found = answer.read()
            sys.stdout.buffer.write(found + end)
    except urllib.error.HTTPError as error:
        _fail(f"{error.code} {error.reason}: {error.read().decode(errors='replace')}")
    except urllib.error.URLError as error:
        _fail(f"no gateway at {url}: {error.reason}")
    except (http.client.HTTPException, OSError, ValueError) as error:  # cut off half way, or a header that is none
        _fail(f"no answer from {url}: {type(error).__name__}: {error}")
    if plot is not None:
        from formats.forecast_plot import draw  # noqa: PLC0415

        with _user_errors():
            draw(body, found, plot)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def load(context: typer.Context) -> None:
    """Load-test a running gateway with locust; see `penstock load --help`."""
    from loadtests.run import main as run  # noqa: PLC0415

    raise typer.Exit(run(context.args))


@data.command()
def pack(
    images: Annotated[Path, typer.Argument(help="Directory of images; without a list, one class per directory in it.")],
    output: Annotated[Path, typer.Option(help="The .rec file; .idx and .lst are written beside it.")],
    lst: Annotated[Path | None, typer.Option(help="Image list: index, labels, path.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Directory of one detection JSON per image.")] = None,
    pack_label: Annotated[bool, typer.Option(help="Keep all label columns of the list.")] = False,
    resize: Annotated[int | None, typer.Option(min=1, help="Length of the shorter side in pixels.")] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of images encoded as JPEG.")] = 95,
    encoding: Annotated[str, typer.Option(help="'.jpg' or '.png' to encode every image anew.")] = "",
    verify: Annotated[bool, typer.Option(help="Decode every image to find damaged ones now.")] = True,
    skip_bad: Annotated[bool, typer.Option(help="Leave out, and name, what cannot be read.")] = False,
    shuffle_seed: Annotated[int | None, typer.Option(help="Shuffle the records with this seed.")] = None,
) -> None:
    """Pack images and their labels into RecordIO (the original's im2rec)."""
    from formats.pack import pack as run  # noqa: PLC0415

    with _user_errors():
        run(
            output=output,
            images_root=images,
            lst=lst,
            annotations=annotations,
            pack_label=pack_label,
            resize=resize,
            quality=quality,
            encoding=encoding,
            verify=verify,
            skip_bad=skip_bad,
            shuffle_seed=shuffle_seed,
            write=typer.echo,
        )


@data.command()
def tokenize(
    train_source: Annotated[Path, typer.Option(help="Tokenised text, one sentence a line.")],
    train_target: Annotated[Path, typer.Option(help="Its translation, line by line.")],
    output: Annotated[Path, typer.Option(help="Directory of the files to write.")],
    val_source: Annotated[Path | None, typer.Option(help="As --train-source, for validation.")] = None,
    val_target: Annotated[Path | None, typer.Option(help="As --train-target, for validation.")] = None,
    vocab_source: Annotated[Path | None, typer.Option(help="An existing vocabulary instead of a new one.")] = None,
    vocab_target: Annotated[Path | None, typer.Option(help="As --vocab-source.")] = None,
    single_vocab: Annotated[bool, typer.Option(help="One vocabulary, built of both sides.")] = False,
    num_words_source: Annotated[int, typer.Option(min=1, help="Most frequent tokens to keep.")] = 50_000,
    num_words_target: Annotated[int, typer.Option(min=1, help="As --num-words-source.")] = 50_000,
    min_count_source: Annotated[int, typer.Option(min=1, help="Rarer tokens are left out.")] = 1,
    min_count_target: Annotated[int, typer.Option(min=1, help="As --min-count-source.")] = 1,
    num_subwords: Annotated[
        int | None, typer.Option(min=1, help="Learn so many parts of words from plain text, and split it into them.")
    ] = None,
    subwords_model: Annotated[Path | None, typer.Option(help="Split plain text by this SentencePiece model.")] = None,
) -> None:
    """Turn parallel text into vocabularies and RecordIO-protobuf for seq2seq."""
    from formats.tokenize import tokenize as run  # noqa: PLC0415

    with _user_errors():
        run(
            train_source=train_source,
            train_target=train_target,
            output_dir=output,
            val_source=val_source,
            val_target=val_target,
            vocab_source=vocab_source,
            vocab_target=vocab_target,
            single_vocab=single_vocab,
            num_words_source=num_words_source,
            num_words_target=num_words_target,
            min_count_source=min_count_source,
            min_count_target=min_count_target,
            num_subwords=num_subwords,
            subwords_model=subwords_model,
            write=typer.echo,
        )


@data.command()
def subwords(
    model: Annotated[Path, typer.Argument(help="A SentencePiece model, such as tokenize writes.")],
    merge: Annotated[bool, typer.Option(help="Tokens to text, instead of text to tokens.")] = False,
) -> None:
    """Split each line of standard input into parts of words, or put them together, for seq2seq's requests."""
    from formats.subwords import Subwords  # noqa: PLC0415
    from formats.subwords import merge as merged  # noqa: PLC0415

    with _user_errors():
        split = Subwords(model).split
        for line in sys.stdin:
            typer.echo(merged(line.split()) if merge else " ".join(split(line.strip())))


@data.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="RecordIO, JSON Lines, .lst, Parquet, an image or JSON.")],
    first: Annotated[int, typer.Option(min=0, help="How many records to show.")] = 3,
    max_faults: Annotated[int, typer.Option(min=0, help="How many malformed records to name.")] = 100,
) -> None:
    """Tell what is in a file, and name every malformed record; exit status 1 when there is one."""
    from formats.inspection import inspect as run  # noqa: PLC0415

    with _user_errors():
        report = run(file, first=first, max_faults=max_faults, write=typer.echo)
    raise typer.Exit(1 if report.malformed else 0)


def main() -> None:
    app()


def _wait_for(model: str, url: str, wait_s: float) -> None:
    """Until the model is ready, or the time is over; then the request itself will tell why not."""
    import time  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/v2/models/{model}/ready", timeout=10):  # noqa: S310
                return
        except OSError:
            time.sleep(0.2)


def _serving(settings: Settings) -> Coroutine[Any, Any, None]:
    if settings.processes > 1:
        from gateway.supervisor import run_several  # noqa: PLC0415

        return run_several(settings, _announce)
    from gateway.server import run  # noqa: PLC0415

    return run(settings, _announce)


def _announce(gateway: Gateway | Supervisor) -> None:
    from rich.console import Console  # noqa: PLC0415

    settings = gateway.settings
    console = Console(stderr=True)
    console.print(f"[bold]penstock[/] serves {settings.store}")
    console.print(f"  HTTP        http://{settings.host}:{gateway.http_port}")
    console.print(f"  gRPC        {settings.host}:{gateway.grpc_port}")
    console.print(f"  management  http://{settings.admin_host}:{gateway.admin_port}  (metrics at /metrics)")
    if settings.processes > 1:
        console.print(f"  processes   {settings.processes}")
    if gateway.empty:
        console.print("  no model is published yet: penstock publish BUNDLE --name NAME")


def _open_store(root: Path | None) -> Store:
    from model_store.store import DEFAULT_ROOT, Store  # noqa: PLC0415

    if root is not None and root.exists() and not root.is_dir():
        _fail(f"store {root} is not a directory")
    return Store(root or DEFAULT_ROOT)


@contextmanager
def _bundle_of(
    path: Path,
    algorithm: str | None,
    inputs: list[str],
    outputs: list[str],
    batched: bool | None,
    limits: dict[str, Any],
) -> Iterator[Path]:
    """The bundle to publish; around a bare graph file one is made for the moment."""
    if algorithm is None and not path.is_file():
        given = {"input": inputs, "output": outputs, "batched": batched is not None, **limits}
        strange = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
        if strange:
            raise ValueError(f"{', '.join(strange)}: only for a graph file and --algorithm tensor")
        yield path
        return
    if algorithm != "tensor":
        raise ValueError(
            f"{path}: --algorithm {algorithm}: only `tensor` publishes a graph file"
            if algorithm
            else f"{path} is a file, not a bundle; a graph of somebody else is published with --algorithm tensor"
        )
    from tempfile import TemporaryDirectory  # noqa: PLC0415

    from exporters.tensor import export_graph, parse_spec  # noqa: PLC0415

    with TemporaryDirectory() as directory:
        yield export_graph(
            path,
            Path(directory) / "bundle",
            inputs=[parse_spec(each) for each in inputs],
            outputs=[parse_spec(each) for each in outputs],
            batched=batched,
            limits=limits,
            write=lambda text: typer.echo(f"penstock: {path}: {text}", err=True),
        )


def _pairs(items: list[str], option: str) -> dict[str, str]:
    pairs = {}
    for item in items:
        name, separator, value = item.partition("=")
        if not separator or not name:
            _fail(f"{option} {item}: expected NAME=VALUE")
        if name in pairs:
            _fail(f"{option} {item}: '{name}' is given twice")
        pairs[name] = value
    return pairs


def _read_json_object(path: Path, what: str = "hyperparameters") -> dict[str, Any]:
    with _user_errors():
        try:
            value = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise ValueError(f"{path}: expected a JSON object of {what}, found {type(value).__name__}")  # noqa: TRY004
        return value


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turns what a user can mend into one line and exit status 1; everything else keeps its traceback."""
    from formats.errors import PenstockError  # noqa: PLC0415

    try:
        yield
    except (PenstockError, ValueError, OSError) as error:
        _fail(_one_line(error))


def _one_line(error: Exception) -> str:
    """An error as one line; of a failed validation, each field with what is wrong with it."""
    from pydantic import ValidationError  # noqa: PLC0415

    if isinstance(error, ValidationError):
        details = [f"{'.'.join(map(str, d['loc']))}: {d['msg']} (found {d['input']!r:.80})" for d in error.errors()]
        return f"invalid value: {'; '.join(details)}"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).splitlines())


def _fail(text: str) -> NoReturn:
    typer.echo(f"penstock: {text}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    main()
