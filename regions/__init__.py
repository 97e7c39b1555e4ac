"""One process per region: asyncio, SQLite, websockets, workers, the command line.

The public names, imported when they are first used: a worker does not pay for the node, nor the
command line for either.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from regions.client import Client
    from regions.execution.worker import Worker
    from regions.node import Node

__all__ = ["Client", "Node", "Worker"]

_HOMES: Final = {"Client": "regions.client", "Node": "regions.node", "Worker": "regions.execution.worker"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'regions' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
