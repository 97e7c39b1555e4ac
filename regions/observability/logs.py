"""Structured logs on stderr: lines for people on a terminal, one JSON object a line for everybody else."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Final

import structlog

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

Logger = structlog.typing.FilteringBoundLogger


def configure_logs(level: str, **bound: Any) -> Logger:
    """Set the process's logging up and return a logger that says `bound` on each line."""
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if not terminal else _keep,
            structlog.dev.ConsoleRenderer(colors=not os.environ.get("NO_COLOR"))
            if terminal
            else structlog.processors.JSONRenderer(default=_plain),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # websockets logs handshakes that fail; we log the same with what we know of the connection.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    return get_logger(**bound)


def get_logger(**bound: Any) -> Logger:
    logger: Logger = structlog.get_logger(**bound)
    return logger


def _keep(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return event


def _plain(value: Any) -> str:
    return bytes(value).hex() if isinstance(value, bytes | bytearray) else str(value)
