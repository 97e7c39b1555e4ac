"""OWN-* and LOC-1: only the owner starts a task, takes over only from the silent, and stays among the members."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final

from crdtsync import events as ev
from crdtsync.identifiers import EventId, region_of
from simulator.checkers.chronicle import Chronicle, Family, named, seqs
from simulator.checkers.peek import physical_ms
from simulator.checkers.reckoning import Verdict
from simulator.trace import Record
from simulator.vacuity import region_of_node

SIGNS_KEPT: Final = 50  # per node and region: more than fit into a batch or two
SLACK: Final = 0.95  # clocks drift, and a commit is written a moment before its record


class Placement(Family):
    kinds = ("commit", "disk.durable")
    #: OWN-1: only the owner claims. OWN-2: takeover only when owner and all before are silent for `lost_after`, and
    #: never under `wait`. OWN-3: an offer is taken up by whom it names, while it stands. LOC-1: owners are members.
    invariants = ("OWN-1", "OWN-2", "OWN-3", "LOC-1")

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__(chronicle)
        #: (node, region) -> newest writing of that region on its disk, [(when it was durable there, when written), ...]
        self._alive_us: dict[tuple[str, str], list[tuple[int, int]]] = {}

    def on_event(self, record: Record) -> None:
        if record.kind == "disk.durable":
            for row in record.subject.commits:
                written = self.chronicle.commits.get((row.writer, row.number))
                if written is not None:
                    known = self._alive_us.setdefault((record.node, region_of(row.writer)), [])
                    known.append((record.at_us, max(written.at_us, known[-1][1] if known else 0)))
                    del known[:-SIGNS_KEPT]
            return
        commit = self.chronicle.commits[record.subject.writer, record.subject.number].commit
        for place, event in enumerate(commit.events):
            id = EventId(commit.stamp, commit.writer, commit.number, place)
            match event:
                case ev.Claimed():
                    self._claimed(record, id, event)
                case ev.TermOpened():
                    self._opened(record, id, event)
                case ev.Inherited():
                    self._inherited(record, id, event)
                case ev.Submitted():
                    self._submitted(record, id, event)
                case _:
                    pass

    def _tell(self, invariant: str, record: Record, id: EventId, event: Any, text: str) -> None:
        self.fail(
            invariant,
            f"{record.node} {text}",
            task=event.task,
            events=(*seqs(self.chronicle.past(event.task, id)), record.seq),
        )

    def _claimed(self, record: Record, id: EventId, event: ev.Claimed) -> None:
        before = self.chronicle.verdict_before(event.task, id)
        if before is None:
            return
        self.judged("OWN-1", record.node, record)
        region = region_of(id.writer)
        if before.exclusive:
            self._under_lease(record, id, event, before)
            return
        if before.owner != region or before.term != event.term:
            text = (
                f"claimed {named(event.task)} in term {event.term}; it belonged to {before.owner}, term {before.term}"
            )
            self._tell("OWN-1", record, id, event, text)
        standing = [offer for offer, _ in before.offers if offer not in before.withdrawn]
        wait = before.submitted.options.partition == "wait"
        if standing and standing[-1] == before.offers[-1][0]:
            self._tell("OWN-3", record, id, event, f"claimed {named(event.task)} while its own offer of it stood")
        elif wait and before.offers:
            self._tell("OWN-3", record, id, event, f"claimed {named(event.task)} in a term in which it had offered it")

    def _under_lease(self, record: Record, id: EventId, event: ev.Claimed, before: Verdict) -> None:
        """Whoever holds the lease claims; that it does is for the checkers of exclusivity to say."""
        newest = max((one.claim.token for one in before.tries), default=0)
        mine = [one for one in before.open_tries if one.region == region_of(id.writer)]
        if event.token <= 0 or event.token < newest:
            text = f"claimed {named(event.task)} under token {event.token}, having seen {newest}"
            self._tell("OWN-1", record, id, event, text)
        elif mine:
            self._tell("OWN-1", record, id, event, f"claimed {named(event.task)} beside an attempt of its own")

    def _opened(self, record: Record, id: EventId, event: ev.TermOpened) -> None:
        before = self.chronicle.verdict_before(event.task, id)
        if before is None:
            return
        region = region_of(id.writer)
        invariant = "OWN-2" if event.offer is None else "OWN-3"
        self.judged(invariant, record.node, record)
        if event.term != before.term + 1:
            self._tell(
                invariant, record, id, event, f"opened term {event.term} of {named(event.task)} after {before.term}"
            )
        if event.offer is not None:
            self._accepted(record, id, event, before, region)
            return
        if before.submitted.options.partition != "takeover":
            policy = before.submitted.options.partition
            self._tell("OWN-2", record, id, event, f"took over {named(event.task)}, whose policy is {policy}")
        if before.winner is not None or before.cancelled_for_good:
            self._tell("OWN-2", record, id, event, f"took over {named(event.task)}, which was {before.state}")
        self._silence(record, id, event, before, region)

    def _inherited(self, record: Record, id: EventId, event: ev.Inherited) -> None:
        """Only what a region left that is gone for good, and only the next in order takes it."""
        before = self.chronicle.verdict_before(event.task, id)
        if before is None:
            return
        self.judged("OWN-2", record.node, record)
        roll = self.chronicle.roll_before(id)
        region = region_of(id.writer)
        if event.region not in roll.gone or before.owner != event.region:
            text = f"inherited {named(event.task)} of {event.region}, which has not left, or did not own it"
            self._tell("OWN-2", record, id, event, text)
        offered = {offer.region for _, offer in before.offers}
        if region != order_of(event.task, roll.voters)[0] and region not in offered:
            self._tell("OWN-2", record, id, event, f"inherited {named(event.task)} out of its order")

    def _accepted(
        self,
        record: Record,
        id: EventId,
        event: ev.TermOpened,
        before: Verdict,
        region: str,
    ) -> None:
        assert event.offer is not None
        offer = next((o for i, o in before.offers if i == EventId(*event.offer)), None)
        withdrawn = EventId(*event.offer) in before.withdrawn
        if offer is None:
            self._tell("OWN-3", record, id, event, f"took up an offer of {named(event.task)} that it had not seen")
        elif region != offer.region and not (region == before.owner and withdrawn):
            self._tell("OWN-3", record, id, event, f"took up an offer of {named(event.task)} made to {offer.region}")
        elif withdrawn and region == offer.region and region != before.owner:
            self._tell("OWN-3", record, id, event, f"took up an offer of {named(event.task)} that had been withdrawn")

    def _silence(
        self,
        record: Record,
        id: EventId,
        event: ev.TermOpened,
        before: Verdict,
        region: str,
    ) -> None:
        """Own clocks and paths apart: whoever wrote what this disk holds was alive when it was written."""
        node = self.world.nodes[record.node]
        lost_after_us = round(node.settings.lost_after_ms * 1_000 * SLACK)
        before_me = [before.owner]
        for member in order_of(event.task, self.chronicle.roll_before(id).voters):
            if member == region:
                break
            if member != before.owner:
                before_me.append(member)
        if record.at_us - self.chronicle.node(record.node).started_us < lost_after_us:
            self._tell(
                "OWN-2", record, id, event, f"took over {named(event.task)} within `lost_after` of its own start"
            )
        for member in before_me:
            decided_us = record.at_us - self._batch_us(record)
            signs = self._alive_us.get((record.node, member), ())
            alive_us = max((alive for durable, alive in signs if durable < decided_us), default=-lost_after_us)
            quiet_us = record.at_us - alive_us
            # A commit's age is told by its stamp: a clock that is ahead of its writer's takes it for older than it is.
            ahead_us = max(0, physical_ms(node) - physical_ms(self.world.regions[member])) * 1_000
            if quiet_us < lost_after_us - ahead_us:
                text = (
                    f"took over {named(event.task)} though {member} was silent for no more than {quiet_us / 1e6:.2f} s"
                )
                self._tell("OWN-2", record, id, event, text)

    def _batch_us(self, record: Record) -> int:
        """How long a decision may wait for the batch before it: with a slow disk, long."""
        return (
            round(max(10.0, 2 * max(self.world.scenario.disk_ms)) * 1_000)
            + 2 * self.world.nodes[record.node].disk.slow_us
        )

    def _submitted(self, record: Record, id: EventId, event: ev.Submitted) -> None:
        self.judged("LOC-1", record.node, record)
        members = self.chronicle.roll_before(id).voters
        if event.owner not in members:
            self.fail(
                "LOC-1",
                f"{record.node} gave {named(event.task)} to {event.owner}, which is no member",
                task=event.task,
                events=(record.seq,),
            )
        elif event.key and event.options.partition == "wait" and event.undoes is None:
            # `here` and `spread` both mean the first of the rendezvous order for these; a region by name is no key's.
            first, here = order_of(event.task, members)[0], region_of_node(record.node)
            if event.owner == here and here != first and not self._asked_for(event):
                self.fail(
                    "LOC-1",
                    f"{record.node} keeps the keyed {named(event.task)} for itself; two sides of a cut could own it",
                    task=event.task,
                    events=(record.seq,),
                )

    def _asked_for(self, event: ev.Submitted) -> bool:
        """Whether some client named that region."""
        return any(
            spec.key == event.key and spec.region == event.owner
            for operation in self.world.history
            if operation.op == "submit"
            for spec in operation.command.specs
        )


def order_of(task: bytes, members: tuple[str, ...]) -> list[str]:
    """A task's rendezvous order: by the first 8 bytes of BLAKE2b(task, region), highest first."""
    scores = {m: int.from_bytes(blake2b(task + m.encode(), digest_size=8).digest(), "big") for m in members}
    return sorted(members, key=lambda member: (-scores[member], member))
