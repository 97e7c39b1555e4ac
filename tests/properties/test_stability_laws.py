"""What is stable is everywhere, and nothing concurrent to it can still appear: acknowledgements in any order, restarts
included."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from crdtsync.identifiers import DEFAULT_DOMAIN, RegionId
from crdtsync.log.commit import Commit
from crdtsync.log.domain_log import DomainLog
from crdtsync.log.heads import Heads
from crdtsync.log.stability import Ack, Stability
from tests.log_strategies import apply_all, deliver, expired, stamp, writer

REGIONS = [RegionId("eu"), RegionId("us"), RegionId("ap")]


@dataclass
class Member:
    region: RegionId
    incarnation: int = 0
    disk: list[Commit] = field(default_factory=list)

    def __post_init__(self):
        self.start()

    def start(self):
        """From the disk, as another incarnation; acknowledgements heard before are forgotten."""
        self.incarnation += 1
        self.log = DomainLog(DEFAULT_DOMAIN, writer(self.region, self.incarnation))
        for commit in self.disk:
            self.log.restore_commit(commit.blob)
        apply_all(self.log)
        self.stability = Stability(REGIONS, self.log.applied)

    def write(self, ms):
        commit = self.log.append([expired()], stamp(ms))
        self.disk.append(commit)
        self.log.mark_durable(self.log.have, self.log.applied)
        return commit

    def hear(self, commits):
        for commit in commits:
            if not self.log.have.has(commit.writer, commit.number):
                deliver(self.log, commit)
                self.disk.append(commit)
        self.log.mark_durable(self.log.have, self.log.applied)
        self.stability.advance(self.log.applied)

    def ack(self):
        heads = self.log.durable_applied
        return Ack(self.region, self.log.writer, heads[self.log.writer], heads)


def plainly_stable(stability: Stability) -> Heads:
    """What every member has acknowledged, by the definition: the meet of all that counts."""
    counting = [member.counting for member in stability._members.values()]
    if None in counting:
        return Heads()
    return reduce(Heads.meet, map(Heads.of, counting))


@given(st.data())
def test_what_is_stable_is_everywhere_and_in_the_past_of_whatever_comes_later(data):
    members = [Member(region) for region in REGIONS]
    past: dict[tuple[str, int], Heads] = {}
    acks: list[Ack] = []
    choices = st.lists(
        st.tuples(
            st.sampled_from(["write", "write", "gossip", "gossip", "ack", "ack", "ack", "restart"]),
            st.integers(0, 2),
            st.integers(0, 2),
            st.integers(0, 9),
        ),
        min_size=10,
        max_size=50,
    )
    for step, (action, a, b, n) in enumerate(data.draw(choices)):
        member = members[a]
        if action == "write":
            before = member.log.applied
            commit = member.write(step)
            past[commit.writer, commit.number] = before
        elif action == "gossip":  # causal order, but maybe not all of it
            missing = [c for c in members[b].disk if not member.log.have.has(c.writer, c.number)]
            member.hear(missing[: len(missing) - n // 4] if n < 8 else missing)
        elif action == "restart":
            member.start()
        else:
            acks.append(members[b].ack())
            for given in (acks[-1], acks[-1 - n % len(acks)]):
                member.stability.offer(given, step)
        for each in members:
            stable = each.stability.stable()
            assert stable == plainly_stable(each.stability)
            assert all(other.log.durable_applied.covers(stable) for other in members)
            for (name, number), seen in past.items():
                if not each.log.applied.has(name, number):
                    assert seen.covers(stable)
    for member in members:  # once everybody has everything and has said so, everything is stable
        for other in members:
            member.hear(other.disk)
    for member in members:
        for other in members:
            member.stability.offer(other.ack(), 0)
        assert member.stability.stable() == member.log.applied
        for name, number in member.log.applied.items():
            assert member.stability.missing(name, number) == []
