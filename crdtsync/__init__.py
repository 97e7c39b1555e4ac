"""crdtsync: tasks that keep running when regions are cut off from each other, and agree again afterwards.

The names below are what an app needs; they are imported when first used, so that `import crdtsync` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crdtsync.app import App as App
    from crdtsync.app import PermanentError as PermanentError
    from crdtsync.app import Retry as Retry
    from crdtsync.context import Context as Context
    from crdtsync.context import SyncContext as SyncContext
    from crdtsync.errors import CrdtSyncError as CrdtSyncError
    from crdtsync.execution import AttemptStoppedError as AttemptStoppedError
    from crdtsync.execution import LostAttempt as LostAttempt
    from crdtsync.limit import Limit as Limit

_HOMES = {
    "App": "crdtsync.app",
    "AttemptStoppedError": "crdtsync.execution",
    "Context": "crdtsync.context",
    "CrdtSyncError": "crdtsync.errors",
    "Limit": "crdtsync.limit",
    "LostAttempt": "crdtsync.execution",
    "PermanentError": "crdtsync.app",
    "Retry": "crdtsync.app",
    "SyncContext": "crdtsync.context",
}
__all__ = [
    "App",
    "AttemptStoppedError",
    "Context",
    "CrdtSyncError",
    "Limit",
    "LostAttempt",
    "PermanentError",
    "Retry",
    "SyncContext",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'crdtsync' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
