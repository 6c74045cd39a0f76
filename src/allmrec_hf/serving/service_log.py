"""The log of the service: one object of JSON a line, without what users have seen unless that is asked for."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import datetime, timezone
from typing import Any

FIELDS = "fields"  # of a record: what goes into its object beside time, level and message


class JSONFormatter(logging.Formatter):
    """Writes a record as one line of JSON in ASCII, so that no title can command a terminal or forge a line.

    Args:
        with_histories: Keep the messages of unexpected errors, which may hold data of a request.
    """

    def __init__(self, with_histories: bool = False) -> None:
        super().__init__()
        self._with_histories = with_histories

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": when, "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, FIELDS, {})
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["places"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(record.exc_info[2])
            ]
            if self._with_histories:
                line["told"] = str(record.exc_info[1])
        return json.dumps(line, ensure_ascii=True, default=str)


def setup_service_log(with_histories: bool = False) -> None:
    """Send the log of the service and of uvicorn to standard error as JSON.

    The pipeline's own remarks on requests, which name items of histories, are left out unless asked for: a response
    tells them to whom they concern.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter(with_histories))
    for name, level in (
        ("allmrec_hf", logging.WARNING),
        ("allmrec_hf.serving", logging.INFO),
        ("uvicorn", logging.INFO),
    ):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = ([handler], False) if name != "allmrec_hf.serving" else ([], True)
        logger.setLevel(level)
    for name in ("uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers, logging.getLogger(name).propagate = [], name == "uvicorn.error"
    logging.getLogger("allmrec_hf.pipeline_recommendation").setLevel(
        logging.WARNING if with_histories else logging.ERROR
    )
