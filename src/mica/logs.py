"""Logging: one logger for each module, formatters for a terminal and for machines. Set up by `cli/` only."""

import json
import logging
import sys
import time


def logger(name: str) -> logging.Logger:
    return logging.getLogger(name)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        document = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        if record.exc_info:
            document["error"] = self.formatException(record.exc_info)
        return json.dumps(document)


def configure(*, level: str = "warning", as_json: bool = False) -> None:
    """Send log records of all modules to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if as_json else logging.Formatter("mica: %(levelname)s: %(message)s"))
    root = logging.getLogger("mica")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
