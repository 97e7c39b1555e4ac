"""What a cluster's log says, read by an oracle of its own: the rules of one task once more, in few lines.

It shares the decoding of commits with the program, and nothing of what the program makes of them.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from crdtsync import events as ev
from crdtsync.commands import LogHeads, ReadLog
from crdtsync.identifiers import region_of
from crdtsync.log.commit import decode_commit


@dataclass
class Attempt:
    id: object
    claim: ev.Claimed
    ends: list = field(default_factory=list)  # (event id, Ended)
    effects: list = field(default_factory=list)  # (event id, EffectRecorded)

    @property
    def region(self):
        return region_of(self.id.writer)

    @property
    def succeeded(self):
        return any(end.outcome == "ok" for _, end in self.ends)

    @property
    def in_time(self):
        """Ended ok by an end that was not late; a success beats other ends of the attempt."""
        oks = sorted((event, end) for event, end in self.ends if end.outcome == "ok")
        return bool(oks) and not oks[0][1].late


@dataclass
class Story:
    """Everything that the log says about one task."""

    submissions: list = field(default_factory=list)
    attempts: dict = field(default_factory=dict)
    cancels: list = field(default_factory=list)
    terms: list = field(default_factory=list)

    @property
    def submitted(self):
        return min(self.submissions)[1]

    @property
    def winner(self):
        options = self.submitted.options
        if options.cancel == "wins" and any(not cancel.late for _, cancel in self.cancels):
            return None
        good = [attempt for attempt in self.attempts.values() if attempt.in_time]
        return min(good, key=lambda attempt: attempt.id, default=None)

    @property
    def lost(self):
        """How many attempts were lost, by reason."""
        ends = [min(attempt.ends)[1] for attempt in self.attempts.values() if attempt.ends]
        return Counter(end.reason for end in ends if end.outcome == "lost")

    def standing(self, winner):
        """Keys of the effects on which the outcome rests: the winner's own and those that it relies on."""
        relies = set(map(tuple, winner.claim.relies))
        return {
            effect.key.hex()
            for attempt in self.attempts.values()
            for event, effect in attempt.effects
            if attempt is winner or tuple(event) in relies
        }

    @property
    def recorded(self):
        return {effect.key.hex() for attempt in self.attempts.values() for _, effect in attempt.effects}


async def read_log(client):
    """Every commit that the node holds."""
    commits = []
    for row in await client.request(LogHeads()):
        first = row["floor"] + 1
        while first <= row["head"]:
            blobs = await client.request(ReadLog(row["writer"], first))
            assert blobs, (row, first)
            commits += map(decode_commit, blobs)
            first = commits[-1].number + 1
    return commits


def stories(commits):
    """What the commits say, by task id in hex."""
    found = defaultdict(Story)
    pairs = [(commit.event_id(i), event) for commit in commits for i, event in enumerate(commit.events)]
    for event_id, event in pairs:
        match event:
            case ev.Submitted():
                found[event.task.hex()].submissions.append((event_id, event))
            case ev.Claimed():
                found[event.task.hex()].attempts[tuple(event_id)] = Attempt(event_id, event)
            case ev.TermOpened():
                found[event.task.hex()].terms.append((event_id, event))
            case ev.CancelRequested():
                found[event.task.hex()].cancels.append((event_id, event))
    for event_id, event in pairs:
        if isinstance(event, ev.Ended | ev.EffectRecorded):
            attempt = found[event.task.hex()].attempts[tuple(event.attempt)]
            (attempt.ends if isinstance(event, ev.Ended) else attempt.effects).append((event_id, event))
    return dict(found)


def misplaced_effects(stories, done):
    """What stands that should not, and what was undone that should stand. `done`: lines of the sink.

    Only what was recorded is judged: a crash between an effect and its record is an honest limit.
    """
    undone = {line["key"] for line in done if line["kind"] == "undo"}
    problems = []
    for task, story in stories.items():
        if not story.submissions or not story.submitted.options.compensate:
            continue
        winner = story.winner
        cancelled = winner is None and any(not cancel.late for _, cancel in story.cancels)
        if winner is None and not cancelled:
            continue  # dead: its ledger is kept for a requeue
        standing = story.standing(winner) if winner is not None else set()
        if wrongly := standing & undone:
            problems.append(f"task {task}: the winner's effects were undone: {sorted(wrongly)}")
        if left := story.recorded - standing - undone:
            problems.append(f"task {task}: effects of attempts that lost still stand: {sorted(left)}")
    return problems
