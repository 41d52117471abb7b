"""Compiles every `.proto` beside this file: `python -m formats.protos.generate`.

Each generated module keeps its messages in a descriptor pool of its own. In the default pool, which a process has only
one of, a second definition of the same full name ends the import with a TypeError: a client library with its copy of
the same file (tritonclient, TorchServe's stubs, the SageMaker SDK) could then not live beside this package.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

__all__ = ["generate", "privatise"]

_DEFAULT_POOL = "_descriptor_pool.Default()"
_PRIVATE_POOL = "_descriptor_pool.DescriptorPool()"
_STUB_EXCEPTION = '# The compiler writes bare generics.\n# mypy: disable-error-code="type-arg"'


def privatise(source: str, name: str) -> str:
    """Make a generated module build its messages in a pool of its own.

    Raises:
        ValueError: the module imports another `.proto` (a private pool holds one file), or looks otherwise than what
            the known compilers write.
    """
    if "_pb2 as " in source:
        raise ValueError(f"{name} imports another .proto; declare what it needs from there in the file itself")
    if source.count(_DEFAULT_POOL) != 1:
        raise ValueError(f"{name}: expected one {_DEFAULT_POOL} in the generated module; the compiler has changed")
    return source.replace(_DEFAULT_POOL, _PRIVATE_POOL)


def generate(directory: Path) -> list[Path]:
    """Compile every `.proto` of a directory to `_pb2.py` and `_pb2.pyi`; returns the modules.

    Raises:
        ValueError: a file does not compile, or imports another.
    """
    from grpc_tools import protoc  # noqa: PLC0415  only developers have it

    well_known = files("grpc_tools") / "_proto"
    modules = []
    for proto in sorted(directory.glob("*.proto")):
        where = [f"-I{directory}", f"-I{well_known}", f"--python_out={directory}", f"--pyi_out={directory}"]
        if protoc.main(["protoc", *where, str(proto)]) != 0:
            raise ValueError(f"{proto} does not compile")
        module = directory / f"{proto.stem}_pb2.py"
        module.write_text(privatise(module.read_text(), proto.name))
        stub = module.with_suffix(".pyi")
        stub.write_text(f"{_STUB_EXCEPTION}\n{stub.read_text()}")
        modules.append(module)
    return modules


if __name__ == "__main__":
    for written in generate(Path(__file__).parent):
        sys.stdout.write(f"{written}\n")
