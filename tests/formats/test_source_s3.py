"""An S3 server on loopback (moto's), an unmodified s3fs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import pytest
import s3fs

from formats.errors import InvalidBody
from formats.manifests import attribute_stream, read
from formats.recordio import encode_record
from formats.source import Shard, attribute_fetcher, list_files, open_file, read_raw

PAYLOADS = [bytes([n]) * 1000 for n in range(200)]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Options for fsspec that lead to a server with one bucket of data."""
    port = 5000 + os.getpid() % 1000
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)])
    endpoint = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                urlopen(endpoint, timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        found = {
            "key": "test",
            "secret": "test",
            "client_kwargs": {"endpoint_url": endpoint, "region_name": "eu-west-1"},
        }
        bucket = s3fs.S3FileSystem(**found)
        bucket.mkdir("bucket")
        for part in range(2):
            data = b"".join(map(encode_record, PAYLOADS[100 * part : 100 * part + 100]))
            bucket.pipe(f"bucket/train/{part}.rec", data)
        bucket.pipe("bucket/train/.hidden", b"x")
        bucket.pipe("bucket/m.jsonl", b'{"source-ref":"s3://bucket/train/.hidden","class":1}\n')
        yield found
    finally:
        server.terminate()
        server.wait(10)


def test_a_prefix_is_listed(options: dict[str, Any]) -> None:
    assert list_files("s3://bucket/train", options=options) == ["s3://bucket/train/0.rec", "s3://bucket/train/1.rec"]
    with pytest.raises(InvalidBody, match="no file"):
        list_files("s3://bucket/absent", options=options)


def test_shards_of_a_prefix_neither_drop_nor_repeat(options: dict[str, Any]) -> None:
    files = list_files("s3://bucket/train", options=options)

    found = [raw.payload for rank in range(3) for raw in read_raw(files, shard=Shard(rank, 3), options=options)]

    assert found == PAYLOADS


def test_a_manifest_is_fetched(options: dict[str, Any]) -> None:
    with open_file("s3://bucket/m.jsonl", options=options) as stream:
        rows = list(read(stream, ["source-ref", "class"]))

    assert list(attribute_stream(rows, attribute_fetcher(options=options))) == [b"x", b"1"]


def test_an_absent_object_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidBody, match="s3://bucket/absent"), open_file("s3://bucket/absent", options=options):
        pass
