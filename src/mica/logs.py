"""Logging: one logger for each module, formatters for a terminal and for machines. Only `cli/` sets it up, and
processes that it forked before it knew the settings."""

import json
import logging
import sys
import time
from typing import NamedTuple


def logger(name: str) -> logging.Logger:
    return logging.getLogger(name)


class LogSettings(NamedTuple):
    """The arguments of `configure`."""

    level: str = "warning"
    as_json: bool = False


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


def configure(settings: LogSettings) -> None:
    """Send log records of all modules to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonFormatter() if settings.as_json else logging.Formatter("mica: %(levelname)s: %(message)s")
    )
    root = logging.getLogger("mica")
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    root.propagate = False


def log_settings() -> LogSettings | None:
    """The settings of this process, to send them to a process that was forked before; None if there are none."""
    root = logging.getLogger("mica")
    if not root.handlers:
        return None
    is_json = isinstance(root.handlers[0].formatter, _JsonFormatter)
    return LogSettings(logging.getLevelName(root.level).lower(), is_json)
