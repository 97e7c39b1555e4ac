"""Conditional writes for object stores: an object takes no token older than the one that it was written under.

    objects.put(store, "reports/2026-11.csv", body, ctx.fence)

The token stands in the object's metadata. To write: look, refuse if a newer token stands there, else write *on the
condition that the object's tag is still the same* (`If-Match`, or `If-None-Match: *` where there was none). Whoever
wrote in between changed the tag, so the condition fails, and looking again tells by whom.

That needs a tag which changes with every write. Those of Azure Blob Storage do, and so does the generation of Google
Cloud Storage. The ETag of Amazon S3 and its kin is a hash of the *content*: where a newer holder writes what stood
there before, the tag stays, and an older one that had looked earlier still passes. `put` notices and raises; with such
stores use `publish`, where the token is part of the content.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol

from crdtsync.errors import CrdtSyncError, FencedError, OverloadedError
from regions.fencing.tokens import checked, parsed

TRIES_MAX: Final = 8  # each lost to another writer; more means that something else is wrong
TIMEOUT_S: Final = 30.0
ANSWER_BYTES_MAX: Final = 2**16  # of an answer that is an error
METADATA: Final = "crdtsyncfence"  # Azure takes letters, digits and underscores only, and proxies drop underscores

#: The name of the request's method, its path, and its headers: the headers to send instead.
Sign = Callable[[str, str, Mapping[str, str]], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Stored:
    """What stands in a store under one name."""

    tag: str
    #: The token that it was written under, 0 if none.
    token: int


class Store(Protocol):
    """What `put` needs of a store: a few lines around its own library."""

    def look(self, name: str) -> Stored | None:
        """What is there, by the newest word of the store; None if nothing is."""

    def write(self, name: str, body: bytes, *, token: int, expected: str | None) -> str | None:
        """Write if the tag is still `expected` (None: if nothing is there). Returns the new tag.

        None if the condition failed, or the store could not tell because of another writer (409).
        """


class UnchangedTagError(CrdtSyncError):
    """The store gave two writes one tag, so that its tags cannot fence. The object was written."""

    code = "unchanged_tag"
    definite = False


class StoreError(CrdtSyncError):
    """The store answered something else than it was asked for."""

    code = "object_store"
    exit_code = 75
    definite = False


def put(store: Store, name: str, body: bytes, token: int) -> str:
    """Write an object under a token. Returns its tag.

    A repetition, after an answer that was lost, writes the same once more.

    Raises:
        FencedError: A newer token stands there. Nothing was written.
        OverloadedError: Others wrote it again and again meanwhile. Nothing was written.
        UnchangedTagError: The store's tags are those of contents. Use `publish`.
    """
    checked(token)
    for _ in range(TRIES_MAX):
        stored = store.look(name)
        if stored is not None and stored.token > token:
            raise FencedError(
                f"{name}: the token is {token}, and {stored.token} was there", token=token, seen=stored.token
            )
        tag = store.write(name, body, token=token, expected=None if stored is None else stored.tag)
        if tag is None:
            continue
        if stored is not None and tag == stored.tag and stored.token != token:
            raise UnchangedTagError(f"{name}: was written under another token and kept its tag {tag}: use publish")
        return tag
    raise OverloadedError(f"{name}: others wrote it {TRIES_MAX} times meanwhile")


def publish(store: Store, name: str, body: bytes, token: int) -> str:
    """Write the body under a name of its own, then make `name` point to it. Returns that name of its own.

    What stands under `name` is JSON, `{"fence": 7, "object": "..."}`: its tag changes with the token, also where tags
    are hashes of contents. Readers follow it. Bodies that nothing points to any more are the store's to expire.

    Raises:
        FencedError: A newer token stands there. `name` points where it did.
        OverloadedError: Others wrote `name` again and again meanwhile.
    """
    target = f"{name}.{checked(token)}.{hashlib.blake2b(body, digest_size=16).hexdigest()}"
    store.write(target, body, token=token, expected=None)  # None: it was written before, by us, and is the same
    put(store, name, json.dumps({"fence": token, "object": target}).encode(), token)
    return target


class HttpStore:
    """A store that speaks HTTP with `ETag`, `If-Match` and `If-None-Match`.

    Args:
        url: Names of objects are appended to it.
        prefix: How headers with metadata begin: "x-amz-meta-", "x-ms-meta-", "x-goog-meta-", ...
        sign: Adds what proves who asks.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "x-amz-meta-",
        sign: Sign = lambda _method, _path, headers: headers,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http or https URL")
        self._parts = parts
        self._header = prefix + METADATA
        self._sign = sign
        self._timeout_s = timeout_s

    def look(self, name: str) -> Stored | None:
        status, headers = self._ask("HEAD", name, b"", {})
        if status == HTTPStatus.NOT_FOUND:
            return None
        tag, text = headers.get("etag"), headers.get(self._header)
        token = 0 if text is None else parsed(text)
        if status != HTTPStatus.OK or not tag or token is None:
            raise StoreError(f"HEAD {name} was answered with {status}, tag {tag!r}, token {text!r}")
        return Stored(tag, token)

    def write(self, name: str, body: bytes, *, token: int, expected: str | None) -> str | None:
        condition = {"If-None-Match": "*"} if expected is None else {"If-Match": expected}
        status, headers = self._ask("PUT", name, body, {self._header: str(token), **condition})
        if status in (HTTPStatus.PRECONDITION_FAILED, HTTPStatus.CONFLICT):
            return None
        if status == HTTPStatus.NOT_FOUND and expected is not None:
            return None  # it was deleted since
        tag = headers.get("etag")
        if status not in (HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.NO_CONTENT) or not tag:
            raise StoreError(f"PUT {name} was answered with {status}, tag {tag!r}")
        return tag

    def _ask(self, method: str, name: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str]]:
        path = self._parts.path.rstrip("/") + "/" + urllib.parse.quote(name)
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.netloc, timeout=self._timeout_s)
        try:
            connection.request(method, path, body or None, dict(self._sign(method, path, headers)))
            answer = connection.getresponse()
            answer.read(ANSWER_BYTES_MAX)
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}
        finally:
            connection.close()
