"""The command line that ties the rooms together; each command imports only what it needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from gateway.server import Gateway

__all__ = ["app", "main"]

app = typer.Typer(
    help="Train, export, publish and serve models behind one gRPC/REST gateway.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

StoreOption = Annotated[
    Path | None, typer.Option("--store", help="Root of the published models.", envvar="PENSTOCK_STORE")
]


@app.command()
def train(
    algorithm: Annotated[str, typer.Argument(help="For example image_classification.")],
    channel: Annotated[list[str], typer.Option(help="A channel and its directory, as NAME=DIR; repeat per channel.")],
    output: Annotated[Path, typer.Option(help="Directory for checkpoints, metrics and the trained model.")],
    hyperparameters: Annotated[Path | None, typer.Option(help="JSON object of hyperparameters.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One hyperparameter, as NAME=VALUE; repeatable.")
    ] = None,
) -> None:
    """Train a model; prints the checkpoint to export. Started again, it resumes where it was."""
    values: dict[str, Any] = _read_json_object(hyperparameters) if hyperparameters else {}
    values.update(_pairs(set_ or [], "--set"))
    channels = {name: Path(directory) for name, directory in _pairs(channel, "--channel").items()}

    from trainers.run import train as run  # noqa: PLC0415

    with _user_errors():
        typer.echo(run(algorithm, channels, values, output))


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="What `penstock train` printed.")],
    output: Annotated[Path, typer.Option(help="Directory of the bundle to write.")],
) -> None:
    """Write TorchScript, ONNX and the manifest; refuses when the graphs differ from the model."""
    from exporters.export import export as run  # noqa: PLC0415

    with _user_errors():
        typer.echo(run(checkpoint, output))


@app.command()
def publish(
    bundle: Annotated[Path, typer.Argument(help="What `penstock export` wrote.")],
    name: Annotated[str, typer.Option(help="A letter, then letters, digits, '_', '.' or '-'.")],
    version: Annotated[str | None, typer.Option(help="Default: one more than the largest published.")] = None,
    store: StoreOption = None,
) -> None:
    """Put a bundle into the store, whole or not at all; a running gateway picks it up."""
    from exporters.archive import write_archive  # noqa: PLC0415
    from model_store.store import DEFAULT_ROOT, Store  # noqa: PLC0415

    with _user_errors():
        published = Store(store or DEFAULT_ROOT).publish(bundle, name=name, version=version, archive=write_archive)
    typer.echo(f"{published.manifest.name} version {published.manifest.version}: {published.path}")


@app.command()
def models(store: StoreOption = None) -> None:
    """List what is published, and whether every file is what was published."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from formats.errors import PenstockError  # noqa: PLC0415
    from model_store.store import DEFAULT_ROOT, Store  # noqa: PLC0415

    root = Store(store or DEFAULT_ROOT)
    table, broken = Table("name", "version", "algorithm", "modes", "created", "files"), False
    for name in root.names():
        for version in root.versions(name):
            try:
                bundle = root.open(name, version)
                bundle.verify()
            except PenstockError as error:
                broken = True
                table.add_row(name, version, "", "", "", f"[red]{error}")
                continue
            m = bundle.manifest
            modes = ", ".join(f"{mode} ({'>'.join(spec.placement)})" for mode, spec in m.modes.items())
            table.add_row(name, version, m.algorithm, modes, m.created, "ok")
    Console().print(table)
    raise typer.Exit(1 if broken else 0)


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help="TOML file; PENSTOCK_* variables go before it.")] = None,
    store: StoreOption = None,
) -> None:
    """Serve the store until Ctrl-C or SIGTERM, which drain and end with status 0."""
    import asyncio  # noqa: PLC0415
    import os  # noqa: PLC0415

    # workers are started by fork and exec: gRPC's fork handlers have nothing to do but to warn
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

    import uvloop  # noqa: PLC0415

    from formats.errors import PenstockError  # noqa: PLC0415
    from gateway.logs import configure_logs  # noqa: PLC0415
    from gateway.server import run  # noqa: PLC0415
    from gateway.settings import read_settings  # noqa: PLC0415

    try:
        settings = read_settings(config, store=store)
        configure_logs(settings.log_format)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(settings, _announce))
    except (PenstockError, OSError, ValueError) as error:
        _fail(str(error))


@app.command()
def predict(
    endpoint: Annotated[str, typer.Argument(help="Name of an endpoint or model.")],
    file: Annotated[Path, typer.Argument(help="The request body; - reads standard input.")],
    url: Annotated[str, typer.Option(help="Where the gateway listens.")] = "http://127.0.0.1:8080",
    content_type: Annotated[str | None, typer.Option(help="Default: guessed from the file's name.")] = None,
    accept: Annotated[str, typer.Option(help="Wanted media type of the answer.")] = "application/json",
) -> None:
    """Send one request over the SageMaker runtime protocol and print the answer."""
    import mimetypes  # noqa: PLC0415
    import urllib.error  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    with _user_errors():
        body = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    guessed = content_type or mimetypes.guess_type(file.name)[0] or "application/json"
    request = urllib.request.Request(  # noqa: S310
        f"{url}/endpoints/{endpoint}/invocations", body, {"Content-Type": guessed, "Accept": accept}
    )
    try:
        with urllib.request.urlopen(request, timeout=70) as answer:  # noqa: S310
            sys.stdout.buffer.write(answer.read() + b"\n")
    except urllib.error.HTTPError as error:
        _fail(f"{error.code} {error.reason}: {error.read().decode(errors='replace')}")
    except urllib.error.URLError as error:
        _fail(f"no gateway at {url}: {error.reason}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def load(context: typer.Context) -> None:
    """Load-test a running gateway with locust; further options are those of `penstock load --help-load`."""
    from loadtests.run import main as run  # noqa: PLC0415

    raise typer.Exit(run(context.args))


def main() -> None:
    app()


def _announce(gateway: Gateway) -> None:
    from rich.console import Console  # noqa: PLC0415

    settings = gateway.settings
    console = Console(stderr=True)
    console.print(f"[bold]penstock[/] serves {settings.store}")
    console.print(f"  HTTP        http://{settings.host}:{gateway.http_port}")
    console.print(f"  gRPC        {settings.host}:{gateway.grpc_port}")
    console.print(f"  management  http://{settings.admin_host}:{gateway.admin_port}  (metrics at /metrics)")
    if not gateway.catalog.versions and not gateway.catalog.errors:
        console.print("  no model is published yet: penstock publish BUNDLE --name NAME")


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


def _read_json_object(path: Path) -> dict[str, Any]:
    with _user_errors():
        value = json.loads(path.read_text())
        if not isinstance(value, dict):
            raise ValueError(f"{path}: expected a JSON object of hyperparameters, found {type(value).__name__}")  # noqa: TRY004
        return value


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turns what a user can mend into one line and exit status 1; everything else keeps its traceback."""
    from formats.errors import PenstockError  # noqa: PLC0415

    try:
        yield
    except (PenstockError, ValueError, OSError) as error:
        _fail(str(error))


def _fail(text: str) -> NoReturn:
    typer.echo(f"penstock: {text}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    main()
