"""Rules of the house that no linter knows."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("exporters", "formats", "gateway", "handlers", "loadtests", "model_store", "trainers")
MAX_LINES = 60


def own_modules() -> list[Path]:
    """The project's own code: no generated protobuf modules, no tests."""
    found = [ROOT / "penstock.py"]
    for room in ROOMS:
        found += sorted((ROOT / room).rglob("*.py"))
    return [path for path in found if not path.name.endswith("_pb2.py")]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_function_is_longer_than_sixty_lines() -> None:
    long = []
    for path in own_modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > MAX_LINES:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")

    assert not long


def test_no_module_is_called_by_a_noun_not_yet_found() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}

    assert not [path for path in own_modules() if vague & set(path.with_suffix("").parts[-2:])]


def imports(path: Path, known: set[str], *, lazily: bool) -> set[str]:
    """Names of own modules that a module imports; those inside functions only when asked for."""
    tree = ast.parse(path.read_text())
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or _only_for_types(node):
            inside |= set(ast.walk(node))
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in inside and not lazily:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found & known


def _only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    modules = {name_of(path): path for path in own_modules()}
    # a room's own __init__ is empty, so that importing `gateway.grpc` means nothing
    graph = {name: imports(path, set(modules), lazily=False) - {name} for name, path in modules.items()}
    while leaves := {name for name, wanted in graph.items() if not wanted & graph.keys()}:
        graph = {name: wanted for name, wanted in graph.items() if name not in leaves}

    assert not graph


def test_every_room_is_entered_through_empty_init_files() -> None:
    """What is imported comes from the module that defines it; faces are where import cycles start."""
    filled = [path for path in own_modules() if path.name == "__init__.py" and ast.parse(path.read_text()).body[1:]]

    assert not filled


@pytest.mark.parametrize("room", ["gateway", "handlers", "model_store", "formats"])
def test_the_serving_side_unpickles_nothing(room: str) -> None:
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not forbidden & {alias.name.partition(".")[0] for alias in node.names}, path
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in forbidden, path


def test_every_torch_load_reads_weights_only() -> None:
    for path in own_modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("weights_only") == "True", f"{path}:{node.lineno}"


def test_the_import_rules_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout
