"""After a start: what do the others know of us that our disk may have lost?

A disk can go back in time: a power cut that took the tail with it, a backup, a copy. So a node asks every member for the
heads of all its own writers and for the last acknowledgement it gave, pulls up to the join of the answers, and its new
acknowledgements count only once every member has answered (rules.md). The question is asked on each link and repeated
with the heads until the answer has come; a member that stays away keeps `unanswered` from becoming empty.
"""

from __future__ import annotations

from crdtsync.errors import RemoteProtocolError
from crdtsync.gossip.arrived import Arrived, OwnHeadsArrived
from crdtsync.gossip.peer import Link
from crdtsync.gossip.wire import Wire
from crdtsync.identifiers import RegionId, region_of
from crdtsync.log.heads import Heads
from crdtsync.log.stability import Ack
from crdtsync.protocol.peer_messages import OwnHeads, OwnHeadsAnswer, OwnHeadsQuestion


class Recovery:
    """Our question to everybody, and our answers to theirs."""

    def __init__(self, wire: Wire) -> None:
        self.unanswered: set[RegionId] = set(wire.identity.members) - {wire.me}
        self._wire = wire

    def ask(self, link: Link) -> None:
        """Ask, if the peer has not answered this incarnation yet."""
        if link.peer in self.unanswered:
            self._wire.send(link, OwnHeadsQuestion())

    def answer(self, link: Link) -> None:
        """Say what is durable here of the peer's writers, and what it acknowledged last as far as we know."""
        answers = []
        for domain in link.domains:
            held = self._wire.logs[domain].durable_have
            heads = tuple((writer, number) for writer, number in held.items() if region_of(writer) == link.peer)
            heard = self._wire.stability[domain].latest().get(link.peer)
            ack = None
            if heard is not None:
                ack = (heard.ack.writer, heard.ack.own_number, tuple(heard.ack.heads.items()))
            answers.append(OwnHeads(domain, heads, ack))
        self._wire.send(link, OwnHeadsAnswer(tuple(answers)))

    def answered(self, link: Link, message: OwnHeadsAnswer) -> list[Arrived]:
        """The peer has answered.

        Raises:
            RemoteProtocolError: If it speaks of others than our writers, or of a domain that we do not share.
        """
        arrived: list[Arrived] = []
        me = self._wire.me
        for domain, heads, last in message.domains:
            link.domain(domain)
            if any(region_of(writer) != me for writer, _ in heads) or (last is not None and region_of(last[0]) != me):
                raise RemoteProtocolError("an answer about another region's writers", domain=domain)
            ack = Ack(me, last[0], last[1], Heads(last[2])) if last is not None else None
            arrived.append(OwnHeadsArrived(link.peer, domain, Heads(heads), ack))
        if {domain for domain, _, _ in message.domains} >= link.domains.keys():
            self.unanswered.discard(link.peer)
        return arrived
