"""Planted bugs about members and fencing; see `bugs`."""

# ruff: noqa: ARG005 - a bug has the signature of what it replaces, and reaches inside

from __future__ import annotations

from typing import Any, Final

from crdtsync import inheritance, resolve
from crdtsync.coordination import assembly, roster, synod
from crdtsync.coordination.membership import Membership, MemberState
from crdtsync.identifiers import region_of
from crdtsync.log import caps
from crdtsync.log.heads import Heads
from simulator.mutants import Bug, Patches


def caps_ignored(patches: Patches) -> None:
    patches.replace(caps.Caps, "allows", lambda self, writer, number: True)
    patches.replace(caps.Caps, "refuses", lambda self, writer, number: False)


def answers_of_unlike_versions_mixed(patches: Patches) -> None:
    def finish(self: Any, change: Any, states: Any, finals: Any) -> None:
        leaving = [r for r, state in states.items() if state is MemberState.LEAVING and r not in finals]
        answers: dict[Any, Heads] = {}
        for (_, version), given in self._answers.items():
            for region, heads in given.items() if version <= change.version else ():
                answers[region] = answers.get(region, Heads()).join(heads)
        voters = self._voters(states)
        if leaving and voters <= answers.keys():
            joined = Heads()
            for voter in sorted(voters):
                joined = joined.join(answers[voter])
            for region in leaving:
                finals[region] = Heads({w: n for w, n in joined.items() if region_of(w) == region})

    patches.replace(roster.Roster, "_finish", finish)


def joiners_vote_at_once(patches: Patches) -> None:
    patches.replace(Membership, "voters", property(lambda self: self._in(MemberState.MEMBER, MemberState.JOINING)))


def joiners_are_not_caught_up(patches: Patches) -> None:
    patches.replace(assembly.Assembly, "join_waits_for", lambda self, region: "")


def changes_do_not_wait(patches: Patches) -> None:
    patches.replace(assembly.Assembly, "_wait_ms", lambda self: 0)


def one_vote_changes_the_members(patches: Patches) -> None:
    patches.replace(synod.Proposer, "majority", property(lambda self: 1))


def votes_for_members_are_not_durable(patches: Patches) -> None:
    patches.replace(synod.Acceptor, "to_wire", lambda self: (*self.instance, *synod.NO_BALLOT, *synod.NO_BALLOT, b""))


def nobody_inherits(patches: Patches) -> None:
    patches.replace(inheritance.Inheritance, "settle", lambda self, task, view: False)


def the_forgotten_are_not_told(patches: Patches) -> None:
    from crdtsync.gossip.gossip import Gossip  # noqa: PLC0415

    patches.replace(Gossip, "_turn_away", lambda self, peer, now: [])


def fenced_successes_count(patches: Patches) -> None:
    patches.replace(resolve, "is_fenced", lambda claim, newest: False)


MEMBER_BUGS: Final = (
    Bug("caps_ignored", "commits of a forgotten region that lay on the disk are applied when their time comes",
        ("MEMB-1",), "shunned", plant=caps_ignored),
    Bug("answers_of_unlike_versions_mixed", "what members said of the forgotten before yet another one was is added up",
        ("MEMB-1", "MEMB-2"), "dwindling", plant=answers_of_unlike_versions_mixed),
    Bug("joiners_vote_at_once", "a region votes and owns from the record that adds it", ("MEMB-2", "EXCL-4", "LOC-1"),
        "growing", plant=joiners_vote_at_once),
    Bug("joiners_are_not_caught_up", "a joiner is admitted before every member has heard of it", ("MEMB-3",), "growing",
        plant=joiners_are_not_caught_up),
    Bug("changes_do_not_wait", "the members change again though leases of the ones before last may still run",
        ("EXCL-4",), "dwindling", plant=changes_do_not_wait),
    Bug("one_vote_changes_the_members", "one vote decides who belongs", ("EXCL-4",), "dwindling",
        plant=one_vote_changes_the_members),
    Bug("votes_for_members_are_not_durable", "a voter forgets in a restart what it has accepted", ("EXCL-4",),
        "dwindling", plant=votes_for_members_are_not_durable),
    Bug("nobody_inherits", "nobody goes on with what a forgotten region ran and owned", ("LIVE-TASK", "CONF-7"),
        "dwindling", plant=nobody_inherits),
    Bug("the_forgotten_are_not_told", "a forgotten region that comes back is left in the dark", ("MEMB-4",), "shunned",
        plant=the_forgotten_are_not_told),
    Bug("fenced_successes_count", "a success counts though the task was claimed under a newer token", ("EXCL-3",),
        "fenced", plant=fenced_successes_count),
)  # fmt: skip
