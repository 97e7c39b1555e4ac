"""One process per data directory.

`flock` and not a pid file: the kernel releases it when the process ends, however it ends, so a
node killed with -9 starts again at once and a stale pid can never lock anybody out. And not
`lockf`: POSIX record locks vanish when *any* descriptor of the file is closed in the process.
A child made by fork without exec would share the lock; nothing here forks like that.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from crdtsync.errors import StorageError, StoreLockedError

LOCK_FILE: Final = "lock"


class DirectoryLock:
    """Exclusive use of a data directory, from `take` to `release` or the end of the process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: int | None = None

    def take(self) -> None:
        """Create the directory if need be and lock it.

        Raises:
            StoreLockedError: Somebody has it.
            StorageError: The directory or the lock file cannot be written.
        """
        path = self._directory / LOCK_FILE
        try:
            _make_durable(self._directory)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"cannot use {self._directory} for data: {error}", path=str(path)) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(file, 20, 0).decode("ascii", "replace").strip()
            os.close(file)
            raise StoreLockedError(
                f"{self._directory} is in use by process {pid or '(unknown)'}; stop it, or give this node another --data",
                path=str(self._directory),
                pid=int(pid) if pid.isdecimal() else 0,
            ) from None
        except OSError as error:
            os.close(file)
            raise StorageError(f"cannot lock {path}: {error}", path=str(path)) from error
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _make_durable(directory: Path) -> None:
    """Create `directory` and write its entry to disk: SQLite syncs what is in it, not its name."""
    if directory.is_dir():
        return
    directory.mkdir(parents=True, mode=0o700)
    parent = os.open(directory.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
