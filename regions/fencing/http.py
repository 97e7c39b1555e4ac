"""A header for services: the client says under which token it acts, the service refuses what is older than it has seen.

    response = post(url, headers=fencing.headers(ctx.fence))        # the handler
    with doorkeeper.admit("account A-1", request.headers): ...      # the service

The service answers a smaller token with 412 Precondition Failed and the token that it has seen, in the same header;
`raise_if_refused` turns that into the error that it is. Without the header it answers 428 (RFC 6585), with nonsense 400.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final, Self

from crdtsync.errors import CrdtSyncError, FencedError, OverloadedError
from regions.fencing import sql
from regions.fencing.tokens import checked, parsed

HEADER: Final = "Crdtsync-Fence"
RESOURCES_MAX: Final = 1_000_000  # about 100 MB of rows; a forgotten one would let the past in, so new ones are refused
RESOURCE_CHARS_MAX: Final = 1_000
_STRIPES: Final = 64  # locks for all resources: those that share one wait for each other


class RefusedError(CrdtSyncError):
    """The request may not pass: answer it with `status` and `headers`. Nothing was done."""

    code = "refused"
    exit_code = 4

    def __init__(self, status: HTTPStatus, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message, status=int(status))
        self.status = status
        self.headers = dict(headers or {})


def headers(token: int) -> dict[str, str]:
    """What a request under this token carries."""
    return {HEADER: str(checked(token))}


def raise_if_refused(status: int, answered: Mapping[str, str], token: int) -> None:
    """Raise FencedError if this answer is the refusal of `token`. `answered`: the headers of the answer."""
    seen = parsed(_find(answered, HEADER) or "")
    if status == HTTPStatus.PRECONDITION_FAILED and seen is not None:
        raise FencedError(f"refused: the token is {token}, and {seen} was seen", token=token, seen=seen)


def token_of(given: Mapping[str, str]) -> int:
    """The token in the headers of a request. Raises RefusedError (428, 400)."""
    text = _find(given, HEADER)
    if text is None:
        raise RefusedError(HTTPStatus.PRECONDITION_REQUIRED, f"the header {HEADER} is required")
    token = parsed(text.strip())
    if token is None:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"{text[:40]!r} is no fencing token")
    return token


class Doorkeeper:
    """Remembers on disk the largest token per resource, and admits no smaller one.

    For one process; another that opens the same file is refused. A service of several processes, or one whose effects
    are in a database anyway, runs `sql.gate` in the transaction of the effect instead. Threads may share it; with
    asyncio, call the whole `with` block in a thread.
    """

    def __init__(self, path: str | Path, *, resources_max: int = RESOURCES_MAX) -> None:
        self._resources_max = resources_max
        self._stripes = [threading.RLock() for _ in range(_STRIPES)]
        self._database = threading.Lock()
        self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute(sql.create_gates())
            self._connection.execute("BEGIN EXCLUSIVE")
            self._connection.execute("COMMIT")
            (self._resources,) = self._connection.execute(f"SELECT count(*) FROM {sql.GATES}").fetchone()  # noqa: S608
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def admit(self, resource: str, given: Mapping[str, str]) -> Iterator[int]:
        """Do the effect inside: nobody else is admitted to this resource meanwhile. Yields the token.

        The token is remembered, on disk, before the effect begins: whatever becomes of it, nobody older comes after.

        Args:
            given: The headers of the request.

        Raises:
            RefusedError: 412 for an older token, 428 without one, 400 for nonsense.
            OverloadedError: As many resources as it may remember are known, and this is none of them.
        """
        token = token_of(given)
        if not 0 < len(resource) <= RESOURCE_CHARS_MAX:
            raise RefusedError(
                HTTPStatus.BAD_REQUEST, f"a resource has a name of at most {RESOURCE_CHARS_MAX} characters"
            )
        with self._stripes[hash(resource) % _STRIPES]:
            try:
                self._remember(resource, token)
            except FencedError as error:
                seen = {HEADER: str(error.facts["seen"])}
                raise RefusedError(HTTPStatus.PRECONDITION_FAILED, str(error), seen) from error
            yield token

    def _remember(self, resource: str, token: int) -> None:
        with self._database:
            query = f"SELECT 1 FROM {sql.GATES} WHERE resource = ?"  # noqa: S608
            known = self._connection.execute(query, (resource,)).fetchone() is not None
            if not known and self._resources >= self._resources_max:
                raise OverloadedError(f"{self._resources} resources are known, and a new one would be too many")
            sql.apply(self._connection.cursor(), sql.gate(resource, token))
            self._resources += not known


def _find(given: Mapping[str, str], name: str) -> str | None:
    """A header, whatever its case: some mappings know that names have none, and some do not."""
    return next((value for key, value in given.items() if key.lower() == name.lower()), None)
