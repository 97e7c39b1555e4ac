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
    """Set the process's logging up and return a logger that says `bound` on each line.

    What is logged through the standard library (by workers, handlers, libraries) looks the same.
    """
    terminal = sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering: list[structlog.typing.Processor]
    if terminal:
        rendering = [structlog.dev.ConsoleRenderer(colors=not os.environ.get("NO_COLOR"))]
    else:
        rendering = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=_plain)]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=LEVELS[level], force=True)
    # websockets logs handshakes that fail; we log the same with what we know of the connection.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    return get_logger(**bound)


def get_logger(**bound: Any) -> Logger:
    logger: Logger = structlog.get_logger(**bound)
    return logger


def _plain(value: Any) -> str:
    return bytes(value).hex() if isinstance(value, bytes | bytearray) else str(value)
