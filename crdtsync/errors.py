"""Every exception of the project.

    CrdtSyncError
        ProtocolError
            LocalProtocolError      our bug
            RemoteProtocolError     theirs: close, count, carry on
        ClockError
            ClockSkewError
            ClockOffError           this region stamps nothing new until its clock is right; retry later
        CoordinationError
            FencedError             a newer fencing token was seen
            LeaseHeldError          somebody else holds it
            LeaseLostError          it is no longer held
            QuorumUnavailableError  no majority can be asked
            UnknownLeaseError
        TaskError
            UnknownTaskError
            UndeclaredTaskError
            UnknownAttemptError
            LostLeaseError
            IllegalTransitionError
            DuplicateTaskError
            DependencyError
            NotImplementedYetError
            InvalidRequestError
            TaskFailedError
        UnknownLimitError
        OverloadedError             a named limit is reached; retry later
        DrainingError
        PayloadTooLargeError
        StorageError
            CorruptLogError
            DamagedTaskError        known, but unreadable on this node's disk; ask another region
            SchemaVersionError
            StoreLockedError
        MembershipError             the members cannot be changed now; says what for
        NotAMemberError             this region joins, or was forgotten: ask another one
        UnreachableError            no answer from the node
        IndefiniteError             it may have happened
        WaitTimeoutError
        ConfigError

Each class has a `code` (stable, in JSON), an `exit_code` (CLI) and `definite`: whether the
operation certainly did not happen. Facts are attributes; the message says what a person can do.
"""

from __future__ import annotations

from typing import Any, ClassVar


class CrdtSyncError(Exception):
    """Base of all. State is unchanged unless a subclass says otherwise."""

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1
    definite: ClassVar[bool] = True

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts

    def record(self) -> dict[str, Any]:
        """The error as it travels and as JSON shows it."""
        return {"code": self.code, "message": str(self), "definite": self.definite, **self.facts}


class ProtocolError(CrdtSyncError):
    code = "protocol"


class LocalProtocolError(ProtocolError):
    """We broke the protocol: a bug here."""


class RemoteProtocolError(ProtocolError):
    """The other side broke the protocol. The frame is dropped, nothing of it was applied."""


class ClockError(CrdtSyncError):
    code = "clock"


class ClockSkewError(ClockError):
    """A stamp is ahead of the limit. The clock is unchanged."""

    code = "clock_skew"


class ClockOffError(ClockError):
    """The region's clock is off the majority's, or its stamps are ahead of it: it writes nothing. Nothing was done."""

    code = "clock_off"
    exit_code = 75


class CoordinationError(CrdtSyncError):
    code = "coordination"


class FencedError(CoordinationError):
    """A newer fencing token was seen where this one arrived. Nothing was written; whoever was refused is no longer the
    holder. Facts: `token`, and `seen`, the newer one."""

    code = "fenced"
    exit_code = 4


class LeaseHeldError(CoordinationError):
    """Somebody else holds the lease. Nothing changed."""

    code = "lease_held"
    exit_code = 75


class UnknownLeaseError(CoordinationError):
    """The region asked knows nothing of that lease."""

    code = "unknown_lease"
    exit_code = 3


class LeaseLostError(CoordinationError):
    """The lease is no longer held under this token: its time passed, its region lost it, or an operator took it away.
    Whoever needs it stops; somebody else may hold it now."""

    code = "lease_lost"
    exit_code = 4


class QuorumUnavailableError(CoordinationError):
    """A majority of the regions is needed and cannot be reached, or may not vote yet. Nothing changed."""

    code = "quorum_unavailable"
    exit_code = 75


class TaskError(CrdtSyncError):
    code = "task"


class UnknownTaskError(TaskError):
    code = "not_found"
    exit_code = 3


class UndeclaredTaskError(TaskError):
    """No app in the cluster ever declared this name."""

    code = "undeclared"
    exit_code = 3


class IllegalTransitionError(TaskError):
    """The task's state does not allow this."""

    code = "conflict"
    exit_code = 4


class UnknownLimitError(CrdtSyncError):
    code = "unknown_limit"
    exit_code = 3


class UnknownAttemptError(TaskError):
    """The attempt (or worker) is not one that this node is running: it was lost, or ended long ago."""

    code = "unknown_attempt"
    exit_code = 4


class LostLeaseError(TaskError):
    """The lease under which an attempt began is over. Its next step must not be done."""

    code = "lost_lease"
    exit_code = 5


class DuplicateTaskError(TaskError):
    """The id or key is taken by a submission with another payload."""

    code = "duplicate"
    exit_code = 4


class DependencyError(TaskError):
    """A task named in `after` is not held by the accepting region."""

    code = "dependency"
    exit_code = 3


class NotImplementedYetError(TaskError):
    """Asked for something that this version does not do."""

    code = "not_implemented"
    exit_code = 2


class InvalidRequestError(TaskError):
    """The request makes no sense as it stands (a range, a name, a combination)."""

    code = "invalid"
    exit_code = 2


class OverloadedError(CrdtSyncError):
    """A named limit is reached: try again later."""

    code = "overloaded"
    exit_code = 75


class DrainingError(CrdtSyncError):
    """The node is shutting down and accepts nothing new."""

    code = "draining"
    exit_code = 75


class MembershipError(CrdtSyncError):
    """The membership cannot be changed now. Nothing was proposed; the message says what has to come first."""

    code = "membership"
    exit_code = 75


class NotAMemberError(CrdtSyncError):
    """This region takes no work: it has not joined yet, or it was forgotten. Nothing was done."""

    code = "not_a_member"
    exit_code = 75


class PayloadTooLargeError(CrdtSyncError):
    code = "too_large"
    exit_code = 2


class StorageError(CrdtSyncError):
    code = "storage"
    exit_code = 75


class CorruptLogError(StorageError):
    code = "corrupt"


class DamagedTaskError(StorageError):
    """The task exists, and what this node has of it on disk is damaged. Nothing was done."""

    code = "damaged"


class SchemaVersionError(StorageError):
    code = "schema"
    exit_code = 78


class StoreLockedError(StorageError):
    """Another process uses this data directory."""

    code = "locked"
    exit_code = 78


class UnreachableError(CrdtSyncError):
    """The node could not be reached; nothing was sent."""

    code = "unreachable"
    exit_code = 69


class IndefiniteError(CrdtSyncError):
    """The request was sent and no answer came: it may have happened. Asking again with the same
    id is safe."""

    code = "indefinite"
    exit_code = 69
    definite = False


class WaitTimeoutError(CrdtSyncError):
    """The task did not end in time; it goes on."""

    code = "timeout"
    exit_code = 124


class TaskFailedError(TaskError):
    """The awaited task ended without success; `facts["task"]` is its record."""

    code = "task_failed"
    exit_code = 1


class ConfigError(CrdtSyncError):
    code = "config"
    exit_code = 78


def error_from_record(record: dict[str, Any]) -> CrdtSyncError:
    """The typed exception for an error record that came over the wire."""
    facts = {key: value for key, value in record.items() if key not in ("code", "message", "definite")}
    pending: list[type[CrdtSyncError]] = [CrdtSyncError]
    while pending:
        kind = pending.pop()
        if kind.__dict__.get("code") == record.get("code"):
            return kind(str(record.get("message", "")), **facts)
        pending.extend(kind.__subclasses__())
    return CrdtSyncError(str(record.get("message", "")), **facts)
