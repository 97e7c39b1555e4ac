"""After a start: what do the others know of us that our disk may have lost?

A disk can go back in time: a power cut that took the tail with it, a backup, a copy. So a node asks every member for the
heads of all its own writers and for the last acknowledgement it gave, pulls up to the join of the answers, and its new
acknowledgements count only once every member has answered (rules.md). A member that stays away keeps `unanswered` from
becoming empty.

Not every member need have a link to us: with one dead link of a mesh our acknowledgements would else never count again.
So a question is passed on to whoever is wanted and has no link to the asker, flooded once per round, and the answers
come back the way that the question came. The asker begins a new round with the exchange of heads. An answer names the
asking incarnation, so it was given after that one's start, over however many relays it comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from crdtsync.clock import Now
from crdtsync.errors import RemoteProtocolError
from crdtsync.gossip.arrived import Arrived, OwnHeadsArrived
from crdtsync.gossip.peer import Link, Peer
from crdtsync.gossip.wire import Wire
from crdtsync.identifiers import RegionId, WriterId, incarnation_of, region_of
from crdtsync.log.heads import Heads
from crdtsync.log.stability import Ack
from crdtsync.protocol.peer_messages import OwnHeads, OwnHeadsAnswer, OwnHeadsQuestion


@dataclass(slots=True)
class _Question:
    """What another region's newest incarnation asks, and what is known of it here. Bounded by the members."""

    writer: WriterId
    round: int = -1
    askers: set[RegionId] = field(default_factory=set)  # the peers that brought it
    answers: dict[RegionId, OwnHeadsAnswer] = field(default_factory=dict)


class Recovery:
    """Our question to everybody, our answers to theirs, and what we pass on."""

    def __init__(self, wire: Wire, peers: Mapping[RegionId, Peer]) -> None:
        self.unanswered: set[RegionId] = set(wire.identity.membership.linked) - {wire.me}
        self._wire = wire
        self._peers = peers
        self._questions: dict[RegionId, _Question] = {}

    def ask(self, link: Link, now: Now) -> None:
        """Ask the peer, if it has not answered, and over it those to whom we have no link."""
        linked = {other.peer for other in self._open_links() if other is not link}
        wanted = tuple(sorted(self.unanswered - linked))
        if wanted:
            number = now.mono_ms // self._wire.settings.heads_interval_ms  # one round for all links
            self._wire.send(link, OwnHeadsQuestion(self._wire.identity.writer, number, wanted))

    def asked(self, link: Link, message: OwnHeadsQuestion) -> None:
        """A peer asks, for itself or for another: say what we know of it, and pass on what we do not."""
        region = region_of(message.writer)
        members = self._wire.identity.membership.linked
        if region == self._wire.me or region not in members:
            return
        question = self._questions.get(region)
        if question is None:
            question = self._questions[region] = _Question(message.writer)
        elif message.writer != question.writer:
            # Who asks for itself is alive, whatever its number: a restored disk may count its starts from an old one.
            if link.peer != region and not _is_newer(message.writer, question.writer):
                return  # of an incarnation that is no more
            question = self._questions[region] = _Question(message.writer)
        question.askers.add(link.peer)
        wanted = set(message.wanted) & set(members) - {region}
        if self._wire.me in wanted:
            if self._knows_more_than_is_durable(question.writer):
                wanted.discard(self._wire.me)  # asked again soon
            else:
                question.answers[self._wire.me] = self._own_answer(message.writer)
        for member in sorted(wanted & question.answers.keys()):
            self._wire.send(link, question.answers[member])
        remaining = tuple(sorted(wanted - question.answers.keys()))
        if message.round > question.round and remaining:
            question.round = message.round
            for other in self._open_links():
                if other.peer not in (link.peer, region):
                    self._wire.send(other, message._replace(wanted=remaining))

    def answered(self, link: Link, message: OwnHeadsAnswer) -> list[Arrived]:
        """An answer has come: to our own question, or to one that we passed on.

        Raises:
            RemoteProtocolError: If it speaks of others than the asker's writers.
        """
        region = region_of(message.writer)
        for _, heads, ack in message.domains:
            if any(region_of(writer) != region for writer, _ in heads) or (ack and region_of(ack[0]) != region):
                raise RemoteProtocolError("an answer about another region's writers", writer=message.writer)
        if message.member not in self._wire.identity.membership.linked or message.member == region:
            return []
        if message.writer == self._wire.identity.writer:
            return self._take(message)
        question = self._questions.get(region)
        if question is None or question.writer != message.writer or message.member in question.answers:
            return []
        question.answers[message.member] = message
        for other in self._open_links():
            if other.peer in question.askers and other is not link:
                self._wire.send(other, message)
        return []

    def _open_links(self) -> list[Link]:
        return [link for peer in self._peers.values() if (link := peer.open_link) is not None]

    def _take(self, message: OwnHeadsAnswer) -> list[Arrived]:
        if message.member not in self.unanswered:
            return []
        self.unanswered.discard(message.member)
        me = self._wire.me
        return [
            OwnHeadsArrived(
                message.member,
                domain,
                Heads(heads),
                Ack(me, ack[0], ack[1], Heads(ack[2])) if ack is not None else None,
            )
            for domain, heads, ack in message.domains
            if domain in self._wire.logs
        ]

    def _knows_more_than_is_durable(self, writer: WriterId) -> bool:
        """Whether commits of the asker's earlier writers are on their way to the disk here.

        Who has just applied them may soon act on them, as on rights of a limit that the asker gave away; an answer that
        left them out would let the asker, on an older disk, do so as well (found by tests/properties/limit_model.py).
        """
        region = region_of(writer)
        return any(
            number > self._wire.logs[domain].durable_have[each]
            for domain in self._wire.identity.domains
            for each, number in self._wire.logs[domain].have.items()
            if each != writer and region_of(each) == region
        )

    def _own_answer(self, writer: WriterId) -> OwnHeadsAnswer:
        """What is durable here of that region's writers, and what it acknowledged last as far as we know."""
        region = region_of(writer)
        domains = []
        for domain in self._wire.identity.domains:
            held = self._wire.logs[domain].durable_have
            heads = tuple((each, number) for each, number in held.items() if region_of(each) == region)
            heard = self._wire.stability[domain].latest().get(region)
            ack = None
            if heard is not None:
                ack = (heard.ack.writer, heard.ack.own_number, tuple(heard.ack.heads.items()))
            domains.append(OwnHeads(domain, heads, ack))
        return OwnHeadsAnswer(writer, self._wire.me, tuple(domains))


def _is_newer(writer: WriterId, other: WriterId) -> bool:
    """As for acknowledgements: of two with one number (a cloned disk) the larger name counts."""
    return (incarnation_of(writer), writer) > (incarnation_of(other), other)
