"""What the log says: about what it received, what it waits for, whom it no longer believes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from crdtsync.identifiers import WriterId
from crdtsync.log.commit import Commit

MAX_HOLD_MS: Final = 3_600_000  # rules.md: a commit stamped further ahead is not waited for, an operator is called


class Verdict(StrEnum):
    #: It is *have* now, and so is every buffered commit that it released.
    NEW = "new"
    #: It is *have* already.
    DUPLICATE = "duplicate"
    #: It is *have* already, and takes the place of one that was damaged on disk (`DomainLog.lose`).
    MENDED = "mended"
    #: Its predecessor is missing; it is kept until that arrives.
    BUFFERED = "buffered"
    #: It proves that its writer cannot be believed. Nothing of that writer is accepted from now on.
    QUARANTINED = "quarantined"
    #: It was dropped; `Received.refusal` says why.
    REFUSED = "refused"


class Refusal(StrEnum):
    #: Not a commit. Whoever sent it broke the protocol.
    MALFORMED = "malformed"
    #: A commit of another domain.
    DOMAIN = "domain"
    #: Its writer is quarantined.
    QUARANTINED = "quarantined"
    #: Its writer belongs to no member.
    STRANGER = "stranger"
    #: It lies beyond the final heads of a region that was forgotten.
    FORGOTTEN = "forgotten"
    #: A buffer or the number of writers is at its limit. It is pulled again later.
    OVERFLOW = "overflow"


class Distrust(StrEnum):
    """What a quarantined writer did."""

    #: Two commits under one number: a cloned or rolled-back disk.
    EQUIVOCATION = "equivocation"
    #: A commit that does not follow the one before.
    CHAIN = "chain"
    #: A stamp smaller than the one before.
    STAMP = "stamp"


class Evidence(NamedTuple):
    """Why a writer is quarantined: two commits that cannot both be right."""

    writer: WriterId
    number: int  # of `other`
    distrust: Distrust
    held: bytes  # the commit that we hold, b"" when it is on disk alone
    other: bytes  # the commit that contradicts it


@dataclass(frozen=True, slots=True)
class Received:
    verdict: Verdict
    commits: tuple[Commit, ...] = ()  # what became *have* through it, in order; to be persisted, whatever the verdict
    refusal: Refusal | None = None
    reason: str = ""
    dropped: tuple[int, ...] = ()  # numbers of the same writer that an overflow pushed out of the gap buffer


class Wait(StrEnum):
    #: For a commit of another writer to be applied.
    COMMIT = "commit"
    #: Its stamp is ahead of own time; until then.
    STAMP = "stamp"
    #: Its stamp is ahead by more than `MAX_HOLD_MS`: an operator is needed.
    FAR_AHEAD = "far_ahead"
    #: It rests on the other branch of an equivocation: an operator is needed.
    BRANCH = "branch"
    #: Its region is being forgotten, or was: whether it is part of the history is open, or it is not.
    FORGOTTEN = "forgotten"
    #: To be read back from disk (`needed`).
    DISK = "disk"


class Waiting(NamedTuple):
    """The next commit of a writer to be applied, and what keeps it."""

    writer: WriterId
    number: int
    wait: Wait
    on: tuple[WriterId, int] | None = None  # COMMIT and BRANCH: the commit that it depends on
    until_ms: int = 0  # STAMP and FAR_AHEAD: own time


class Alarm(NamedTuple):
    """Something an operator must know, said once per writer and cause."""

    what: str  # "log.quarantined" | "log.far_ahead" | "log.other_branch" | "log.gap_overflow"
    writer: WriterId
    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class LogLimits:
    """What one domain may keep in memory. Sizes are of encoded commits; decoded they take some seven times that."""

    gap_commits_max: int = 4_096  # arrived before their predecessors; what overflows is pulled again
    gap_bytes_max: int = 8 << 20
    waiting_bytes_max: int = 16 << 20  # have, not yet applied; beyond it they are read back from disk
    hashes_kept: int = 1_024  # per writer: how far back a second commit under one number is told from a repetition
    writers_max: int = 65_536
    max_hold_ms: int = MAX_HOLD_MS
