"""Who belongs to the cluster, and who is meant by "the members"."""

from __future__ import annotations

from crdtsync.coordination.membership import Forgotten, Membership, MemberState
from crdtsync.identifiers import RegionId
from crdtsync.log.heads import Heads

EU, US, AP, SA, ME = (RegionId(name) for name in ("eu", "us", "ap", "sa", "me"))


def changing() -> Membership:
    states = {
        EU: MemberState.MEMBER,
        US: MemberState.MEMBER,
        AP: MemberState.LEAVING,
        SA: MemberState.JOINING,
    }
    return Membership(7, 1, states, {ME: Forgotten(3, Heads())})


def test_the_founders_are_all_members_in_full() -> None:
    founded = Membership.founding((US, EU))
    assert (founded.version, founded.epoch) == (1, 0)
    assert founded.voters == founded.owners == founded.counted == founded.linked == (EU, US)
    assert founded.known == {EU, US}


def test_who_joins_or_leaves_counts_for_stability_and_neither_votes_nor_owns() -> None:
    membership = changing()
    assert membership.voters == membership.owners == (EU, US)
    assert membership.counted == (AP, EU, SA, US)
    assert not membership.is_member(AP)
    assert not membership.is_member(SA)


def test_links_are_kept_to_who_joins_and_not_to_who_leaves() -> None:
    assert changing().linked == (EU, SA, US)


def test_commits_of_the_forgotten_are_still_believed() -> None:
    assert changing().known == {AP, EU, SA, US, ME}


def test_any_two_majorities_share_a_voter() -> None:
    for count in range(1, 10):
        membership = Membership.founding(RegionId(f"r{i}") for i in range(count))
        assert 2 * membership.majority > count
