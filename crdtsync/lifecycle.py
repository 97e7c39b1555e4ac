"""What ONE region may do next with a task, by its own view of it.

This is one of two tables. It governs the acts of one region; how the acts of several regions are
joined is the business of `resolve` and `conflicts`. A region never asks whether an act will turn
out well elsewhere, only whether it is legal here and now.

`TRANSITIONS` says in which state an act is legal and where it may lead. `refusal` adds what a
state does not show: who owns the task, whose attempt it is, what is used up (rules.md's action
table, as far as facts decide it; silence, deadlines and parents are the caller's to judge).
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Final

from crdtsync.errors import IllegalTransitionError
from crdtsync.identifiers import AttemptId
from crdtsync.task_view import ENDED, AttemptState, TaskState, TaskView

__all__ = ["ENDED", "TRANSITIONS", "Action", "AttemptState", "TaskState", "allowed", "check", "refusal"]


class Action(StrEnum):
    #: Begin an attempt. The owner's.
    CLAIM = "claim"
    #: An attempt's handler returned. Its region's, as the next two.
    SUCCEED = "succeed"
    #: It raised, or ran out of time.
    FAIL = "fail"
    #: Nobody will hear of it again.
    LOSE = "lose"
    #: Record an effect. Also after the attempt's end, unless its handler returned: it happened.
    EFFECT = "effect"
    #: Save where a later attempt may resume.
    CHECKPOINT = "checkpoint"
    #: Ask for an end without success. Anybody's.
    CANCEL = "cancel"
    #: Say that the deadline has passed. The owner's.
    EXPIRE = "expire"
    #: Grant the attempts again. Anybody's.
    REQUEUE = "requeue"
    #: Take the task over from a silent owner.
    OPEN_TERM = "open_term"
    #: Offer the task to another region. The owner's, as the next one.
    OFFER = "offer"
    #: Take an offer back.
    WITHDRAW = "withdraw"
    #: Take up an offer. Its receiver's.
    ACCEPT = "accept"
    #: Own again what was offered and taken back, by a new term. The giver's, under `wait`.
    RESUME = "resume"
    #: Change priority or labels. Anybody's.
    EDIT = "edit"


TOKEN_MAX: Final = (1 << 63) - 1  # above any that a lease can have

_S, _A = TaskState, Action


def _to(*states: TaskState) -> frozenset[TaskState]:
    return frozenset(states)


# Where several states are named, the facts decide which: another open attempt, what was granted,
# whether the cancel wins. An attempt of a displaced submission succeeds without ending the task.
TRANSITIONS: Final[dict[TaskState, dict[Action, frozenset[TaskState]]]] = {
    _S.WAITING: {
        _A.CLAIM: _to(_S.RUNNING),
        _A.EFFECT: _to(_S.WAITING),
        _A.CANCEL: _to(_S.CANCELLED, _S.WAITING),  # WAITING: a request that the owner has to answer
        _A.EXPIRE: _to(_S.EXPIRED),
        _A.OPEN_TERM: _to(_S.WAITING),
        _A.OFFER: _to(_S.WAITING),
        _A.WITHDRAW: _to(_S.WAITING),
        _A.ACCEPT: _to(_S.WAITING),
        _A.RESUME: _to(_S.WAITING),
        _A.EDIT: _to(_S.WAITING),
    },
    _S.RUNNING: {
        _A.CLAIM: _to(_S.RUNNING),  # beside an attempt of an owner that was taken over
        _A.SUCCEED: _to(_S.SUCCEEDED, _S.RUNNING, _S.WAITING, _S.EXPIRED, _S.DEAD),
        _A.FAIL: _to(_S.WAITING, _S.RUNNING, _S.DEAD, _S.EXPIRED),
        _A.LOSE: _to(_S.WAITING, _S.RUNNING, _S.DEAD, _S.EXPIRED),
        _A.EFFECT: _to(_S.RUNNING),
        _A.CHECKPOINT: _to(_S.RUNNING),
        _A.CANCEL: _to(_S.CANCELLING, _S.CANCELLED, _S.RUNNING),
        _A.EXPIRE: _to(_S.RUNNING),
        _A.OPEN_TERM: _to(_S.RUNNING),
        _A.OFFER: _to(_S.RUNNING),
        _A.WITHDRAW: _to(_S.RUNNING),
        _A.ACCEPT: _to(_S.RUNNING),
        _A.RESUME: _to(_S.RUNNING),
        _A.EDIT: _to(_S.RUNNING),
    },
    _S.CANCELLING: {
        _A.SUCCEED: _to(_S.SUCCEEDED, _S.CANCELLING, _S.CANCELLED),
        _A.FAIL: _to(_S.CANCELLED, _S.CANCELLING),
        _A.LOSE: _to(_S.CANCELLED, _S.CANCELLING),
        _A.EFFECT: _to(_S.CANCELLING),
        _A.CHECKPOINT: _to(_S.CANCELLING),
        _A.WITHDRAW: _to(_S.CANCELLING),
    },
    # What still runs elsewhere ends too; it changes nothing.
    _S.SUCCEEDED: {
        _A.SUCCEED: _to(_S.SUCCEEDED),
        _A.FAIL: _to(_S.SUCCEEDED),
        _A.LOSE: _to(_S.SUCCEEDED),
        _A.EFFECT: _to(_S.SUCCEEDED),
        _A.CHECKPOINT: _to(_S.SUCCEEDED),
        _A.CANCEL: _to(_S.SUCCEEDED),  # late: recorded, answered "already succeeded"
    },
    _S.DEAD: {
        _A.EFFECT: _to(_S.DEAD),
        _A.CANCEL: _to(_S.CANCELLED, _S.DEAD),  # how a dead letter is discarded
        _A.REQUEUE: _to(_S.WAITING, _S.DEAD),  # DEAD: another death is still unanswered
        _A.EDIT: _to(_S.DEAD),
    },
    _S.EXPIRED: {
        _A.EFFECT: _to(_S.EXPIRED),
    },
    _S.CANCELLED: {
        _A.SUCCEED: _to(_S.CANCELLED),
        _A.FAIL: _to(_S.CANCELLED),
        _A.LOSE: _to(_S.CANCELLED),
        _A.EFFECT: _to(_S.CANCELLED),
        _A.CHECKPOINT: _to(_S.CANCELLED),
    },
}
assert TRANSITIONS.keys() == set(TaskState)  # no state is forgotten

_ON_ATTEMPT: Final = frozenset((_A.SUCCEED, _A.FAIL, _A.LOSE, _A.EFFECT, _A.CHECKPOINT))


def refusal(
    view: TaskView,
    action: Action,
    region: str,
    *,
    attempt: AttemptId | None = None,
    present: Collection[str] = (),
    token: int = 0,
) -> str | None:
    """Why `region` may not do this now, or None if it may.

    `attempt` is the one that is meant, for acts on one. `present` names regions that are known to be
    there: while one of them runs an attempt, a claim waits for it. `token` is that of the lease which
    `region` holds, valid and caught up with its voters, on what the task needs one for.
    """
    if view.submitted is None:
        return "no submission of this task is known here"
    if action not in TRANSITIONS[view.state]:
        return f"the task is {view.state}"
    if action in _ON_ATTEMPT:
        return _refusal_on_attempt(view, action, region, attempt)
    match action:
        case Action.CLAIM:
            if view.submitted.options.exclusive:
                return _refusal_of_exclusive_claim(view, region, token)
            return _refusal_of_claim(view, region, present)
        case Action.EXPIRE:
            if view.owner != region:
                return f"only its owner {view.owner} says that its deadline has passed"
            if view.offer is not None or view.returning is not None:
                return _offered(view)
            if not view.submitted.deadline_ms:
                return "it has no deadline"
            return "it is expired already" if view.expired is not None else None
        case Action.OPEN_TERM:
            return _refusal_of_term(view, region)
        case Action.OFFER:
            if view.submitted.options.exclusive:
                return "whoever holds its lease runs it"
            if view.owner != region:
                return f"it belongs to {view.owner}"
            if view.cancel is not None or view.asked is not None or view.expired is not None:
                return "its end was asked for"
            if view.submitted.options.partition == "wait" and (view.offer or view.returning):
                return _offered(view)  # two receivers could both accept
            return _open_here(view, region)
        case Action.WITHDRAW:
            if view.offer is None or view.owner != region:
                return "there is no offer of this region"
        case Action.ACCEPT:
            if view.offer is None or view.offer.region != region:
                return "it is not offered to this region"
            if view.cancel is not None or view.asked is not None or view.expired is not None:
                return "its end was asked for"
        case Action.RESUME:
            if view.returning is None or view.owner != region or view.offer is not None:
                return "there is no offer that this region took back"
        case Action.CANCEL:
            if view.cancel is not None:
                return "it is being cancelled already"
        case _:  # REQUEUE, EDIT: the state is all that matters
            pass
    return None


def _refusal_on_attempt(view: TaskView, action: Action, region: str, attempt: AttemptId | None) -> str | None:
    known = view.attempt(attempt) if attempt is not None else None
    if known is None:
        return "no such attempt is known here"
    if known.region != region:
        return f"attempt {known.number} is {known.region}'s"
    # A worker that was thought lost may still have done something. A handler that returned has not.
    if known.state is not AttemptState.OPEN and (action is not Action.EFFECT or known.state is AttemptState.OK):
        return f"attempt {known.number} has ended: {known.state}"
    return None


def _refusal_of_exclusive_claim(view: TaskView, region: str, token: int) -> str | None:
    """The lease's holder claims, whoever owns. An attempt under an older token does not hinder it: it is fenced."""
    ending = _refusal_of_start(view)
    if ending is not None:
        return ending
    newest = max((attempt.token for attempt in view.attempts), default=0)
    if token == 0 or token < newest:
        return "it needs a lease from a majority of the regions"
    return _open_here(view, region)


def _refusal_of_start(view: TaskView) -> str | None:
    """Why nobody starts anything more."""
    if view.cancel is not None or view.asked is not None:
        return "its cancel was asked for"
    if view.expired is not None:
        return "it has expired"
    if view.exhausted:
        return f"its attempts are used up: {view.failures} of {view.granted} failed, {view.lost} were lost"
    return None


def _refusal_of_claim(view: TaskView, region: str, present: Collection[str]) -> str | None:
    if view.owner != region:
        return f"it belongs to {view.owner}"
    ending = _refusal_of_start(view)
    if ending is not None:
        return ending
    if view.offer is not None or view.returning is not None:
        return _offered(view)
    for attempt in view.attempts:
        if attempt.state is AttemptState.OPEN and (attempt.region == region or attempt.region in present):
            return f"attempt {attempt.number} runs in {attempt.region}"
    return None


def _offered(view: TaskView) -> str:
    if view.offer is not None:
        return f"it is offered to {view.offer.region}"
    assert view.returning is not None
    return f"{view.returning.region} has not confirmed that it will not take up an offer that was taken back"


def _refusal_of_term(view: TaskView, region: str) -> str | None:
    assert view.submitted is not None
    if view.submitted.options.partition != "takeover":
        return f"its policy is {view.submitted.options.partition}"
    if view.owner == region:
        return "this region owns it already"
    if view.cancel is not None or view.expired is not None or view.exhausted:
        return "nothing new would be started"
    return None


def _open_here(view: TaskView, region: str) -> str | None:
    for attempt in view.attempts:
        if attempt.state is AttemptState.OPEN and attempt.region == region:
            return f"attempt {attempt.number} is still running here"
    return None


def allowed(
    view: TaskView,
    action: Action,
    region: str,
    *,
    attempt: AttemptId | None = None,
    present: Collection[str] = (),
    token: int = 0,
) -> bool:
    return refusal(view, action, region, attempt=attempt, present=present, token=token) is None


def check(view: TaskView, action: Action, region: str, *, attempt: AttemptId | None = None) -> None:
    """Raises IllegalTransitionError, saying why, if `region` may not do this now. Nothing has changed."""
    reason = refusal(view, action, region, attempt=attempt)
    if reason is not None:
        raise IllegalTransitionError(f"cannot {action.replace('_', ' ')}: {reason}", state=str(view.state))


# Short forms of what a replica asks all the time ---------------------------------------------------


def may_claim(view: TaskView, region: str, present: Collection[str] = (), token: int = 0) -> bool:
    return allowed(view, Action.CLAIM, region, present=present, token=token)


def may_start_under_lease(view: TaskView, region: str) -> bool:
    """Whether a valid lease is all that `region` lacks to claim the task."""
    return may_claim(view, region, token=TOKEN_MAX)


def may_expire(view: TaskView, region: str) -> bool:
    """As far as facts go; that the deadline has passed is for the caller to know."""
    return allowed(view, Action.EXPIRE, region)


def may_open_term(view: TaskView, region: str = "") -> bool:
    """As far as facts go; that the owner and those before us are silent is for the caller to know."""
    return allowed(view, Action.OPEN_TERM, region)


def may_accept(view: TaskView, region: str | None = None) -> bool:
    """Whether the offer can be taken up by the region that it names (by `region`, if given)."""
    if view.offer is None:
        return False
    return allowed(view, Action.ACCEPT, view.offer.region if region is None else region)


def must_answer_cancel(view: TaskView, region: str) -> bool:
    """Under `wait`, whether the owner owes an answer to a cancel from elsewhere: a cancel of its own."""
    if view.asked is None or view.owner != region or view.state in ENDED:
        return False
    return view.offer is None and view.returning is None


def may_resume(view: TaskView, region: str) -> bool:
    """Under `wait`, whether an offer taken back stands between the owner and the task.

    The owner may open the next term, naming `view.returning.offer`, once it holds an acknowledgement
    by `view.returning.region` of the commit of `view.returning.withdrawal`, given at a point of that
    member's log up to which it has applied: then the receiver saw the withdrawal and had not accepted.
    """
    return allowed(view, Action.RESUME, region)


def outcome_known(view: TaskView) -> bool:
    """What `late` says of an event written now: an outcome of the task was seen (rules.md, Late)."""
    return view.winner is not None or view.is_cancelled_for_good


def stop_reason(view: TaskView, region: str) -> str:
    """Why handlers of this task in `region` should stop, "" if they should not."""
    if view.winner is not None:
        return "superseded"
    if view.cancel is not None:
        return "cancelled"
    if view.expired is not None:
        return "expired"
    if view.submitted is not None and view.submitted.options.exclusive:
        return ""  # its lease decides, which is no fact
    return "" if view.owner == region else "lost ownership"
