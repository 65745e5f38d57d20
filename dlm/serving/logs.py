"""Logs of a worker: one line per event, as text or JSON. They contain no prompts, answers or keys."""

from __future__ import annotations

import json
import logging
import sys
import time

NAMES = ("dlm.serving", "dlm.access", "uvicorn.error")


class TextFormatter(logging.Formatter):
    """`12:30:05 info request method=POST ...`"""

    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "facts", {})
        said = " ".join(f"{key}={value}" for key, value in facts.items())
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname.lower()} {record.getMessage()} {said}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        row = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            row["exception"] = self.formatException(record.exc_info)
        return json.dumps(row, ensure_ascii=False)


FORMATTERS = {"text": TextFormatter, "json": JsonFormatter}


def set_up_logs(style: str) -> None:
    """Send the server's logs to standard error; `style` is a key of `FORMATTERS`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATTERS[style]())
    for name in NAMES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
