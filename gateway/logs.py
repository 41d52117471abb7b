"""How the gateway logs: one line per event, as text or as JSON; never a body, a header or a credential."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Literal

import orjson

__all__ = ["configure_logs"]


class _Json(logging.Formatter):
    def __init__(self, process: int | None) -> None:
        super().__init__()
        self._process = {} if process is None else {"process": process}

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            **self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def configure_logs(form: Literal["text", "json"], process: int | None = None) -> None:
    """Send everything from INFO up to standard error; of several gateway processes each line says which."""
    which = "" if process is None else f"process {process} "
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Json(process)
        if form == "json"
        else logging.Formatter(f"%(asctime)s %(levelname)s {which}%(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
