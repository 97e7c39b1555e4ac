"""EXCL-* and LEAD-1: one holder at a time, by a majority of votes that a restart remembers; tokens that only grow.

Judged from what voters and holders tell of themselves as it happens, in true time, and from what programs believed and a
register accepted. How long a vote binds, and what a majority is, is reckoned here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from crdtsync.protocol import codec
from simulator.checkers.chronicle import Chronicle, Family
from simulator.checkers.configurations import Configurations
from simulator.locks import PROBE
from simulator.trace import Record

SLACK_US: Final = 2_000  # clocks count milliseconds
DRIFT: Final = 0.99  # no clock here goes wrong by so much
OBTAINED_WITHIN_MS: Final = 20_000  # of the probe: a silence, a holder's time, some lost races, and slow links


@dataclass(slots=True)
class Accepted:
    """One voter's word to one region about one scope."""

    region: str
    ballot: int
    until_us: int  # true time
    life: str


@dataclass(slots=True)
class Tenure:
    node: str
    life: str
    token: int
    until_us: int
    since_us: int
    seq: int


@dataclass(slots=True)
class Belief:
    """What one program believes about one name."""

    owner: str
    token: int
    until_us: int
    seq: int


class Exclusivity(Family):
    kinds = (
        "commit",
        "disk.durable",
        "notify",
        "node.start",
        "lock.call",
        "lock.held",
        "lock.renewed",
        "lock.over",
        "register.write",
    )
    #: EXCL-1: a register that refuses smaller tokens serves one holder after another. EXCL-2: tokens grow in the order of
    #: grants, and stand on disk. EXCL-4: grants and renewals have a majority, of a membership whose majorities meet those
    #: of the one before (`configurations`). EXCL-5: a voter's word binds it, over a
    #: restart too. EXCL-6: programs that look before they act never overlap. EXCL-7: only the newest token is renewed.
    #: EXCL-9: a free lease is obtained. LEAD-1: one region leads at a time.
    invariants = ("EXCL-1", "EXCL-2", "EXCL-4", "EXCL-5", "EXCL-6", "EXCL-7", "EXCL-9", "LEAD-1")

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__(chronicle)
        self._accepted: dict[str, dict[str, Accepted]] = {}  # scope -> voter -> its last word
        self._tenures: dict[str, Tenure] = {}  # scope -> the newest
        self._tokens: dict[str, int] = {}
        self._bounds: dict[str, int] = {}  # node -> the highest ballot that its disk ever knew; it may be lost since
        self._lives: dict[str, tuple[str, int]] = {}  # node -> writer, since when
        self._beliefs: dict[str, dict[str, Belief]] = {}  # name -> owner -> what it believes
        self._owners: dict[tuple[str, int], str] = {}
        self._written: dict[str, int] = {}
        self._asked: dict[tuple[str, str], list[int]] = {}
        self._probe: dict[str, tuple[int, str]] = {}  # owner -> when it asked, where
        self._obtained: dict[str, int] = {}
        self._twins = False  # a clone of a disk was started
        self._configurations = Configurations(
            chronicle,
            fail=lambda text, record, about: self.fail("EXCL-4", text, events=(record.seq,), about=about),
            judged=lambda region, record: self.judged("EXCL-4", region, record),
        )

    def on_event(self, record: Record) -> None:
        if record.kind == "node.start" and "~" in record.node:
            self._twins = True
        if self._twins:
            return  # two processes of one region, each with its vote: an honest limit until they meet, and one stops
        if record.kind == "notify":
            if record.id.startswith("lease."):
                self._lease(record)
        elif record.kind == "commit":
            self._configurations.commit(record)
        elif record.kind == "disk.durable":
            self._configurations.durable(record)
            self._durable(record)
        elif record.kind == "node.start":
            self._lives[record.node] = (record.id, record.at_us)
        elif record.kind == "register.write":
            self._register(record)
        else:
            self._program(record)

    # Regions -------------------------------------------------------------------------------------

    def _lease(self, record: Record) -> None:
        facts = record.subject.facts
        match record.id:
            case "lease.promised":
                self._voted(record, facts)
            case "lease.accepted":
                self._voted(record, facts)
                until_us = self._true_us(record, facts["until_mono_ms"])
                word = Accepted(facts["region"], facts["ballot"], until_us, self._life(record.node))
                self._accepted.setdefault(facts["scope"], {})[record.node] = word
            case "lease.released":
                self._accepted.get(facts["scope"], {}).pop(record.node, None)
            case "lease.granted" | "lease.renewed":
                self._granted(record, facts)
            case "lease.lost":
                tenure = self._tenures.get(facts["scope"])
                if tenure is not None and (tenure.node, tenure.token) == (record.node, facts["token"]):
                    tenure.until_us = min(tenure.until_us, record.at_us)

    def _voted(self, record: Record, facts: dict[str, Any]) -> None:
        """What a voter said to one region it keeps towards all others; after a start it says nothing for a while."""
        self.judged("EXCL-5", record.node, record)
        node = self.world.nodes[record.node]
        life, since_us = self._lives.get(record.node, ("", 0))
        silent_us = round(node.settings.lease_ms * 1_000 * DRIFT)
        if record.at_us - since_us < silent_us:
            self.fail(
                "EXCL-5",
                f"{record.node} votes on {facts['scope']} {(record.at_us - since_us) / 1e6:.2f} s after its start; "
                f"it may have accepted a lease of {node.settings.lease_ms} ms before",
                events=(record.seq,),
            )
        word = self._accepted.get(facts["scope"], {}).get(record.node)
        if word is not None and word.region != facts["region"] and record.at_us + SLACK_US < word.until_us:
            if word.life == life:
                self.fail(
                    "EXCL-5",
                    f"{record.node} votes for {facts['region']} on {facts['scope']}, {(word.until_us - record.at_us) / 1e6:.2f} s "
                    f"before what it accepted from {word.region} is over",
                    events=(record.seq,),
                )

    def _granted(self, record: Record, facts: dict[str, Any]) -> None:
        scope, token, ballot = facts["scope"], facts["token"], facts["ballot"]
        node = self.world.nodes[record.node]
        region, members = node.region, self.chronicle.roll_of(node).voters
        until_us = self._true_us(record, facts["until_mono_ms"])
        words = self._accepted.get(scope, {})
        said = [
            voter
            for voter, word in words.items()
            if (word.region, word.ballot) == (region, ballot) and word.until_us + SLACK_US >= until_us
        ]
        self.judged("EXCL-4", record.node, record)
        if 2 * len({self.world.nodes[voter].region for voter in said} & set(members)) <= len(members):
            self.fail(
                "EXCL-4",
                f"{record.node} takes {scope} with token {token} until {until_us / 1e6:.2f} s by the votes of "
                f"{', '.join(said) or 'nobody'}, and {', '.join(members)} vote",
                events=(record.seq,),
            )
        before = self._tenures.get(scope)
        new = record.id == "lease.granted"
        if new:
            self._judge_token(record, scope, token, ballot, [v for v in said if v in facts["voters"]])
            self.judged("LEAD-1", record.node, record)
            if before is not None and self._leads(before, record):
                self.fail(
                    "LEAD-1",
                    f"{record.node} is granted {scope} while {before.node} holds it under token {before.token} for "
                    f"{(before.until_us - record.at_us) / 1e6:.2f} s more",
                    events=(before.seq, record.seq),
                )
        since_us = record.at_us if new or before is None else before.since_us
        self._tenures[scope] = Tenure(record.node, self._life(record.node), token, until_us, since_us, record.seq)

    def _leads(self, tenure: Tenure, record: Record) -> bool:
        """Whether it is still believed, by a process that still runs."""
        node = self.world.nodes[tenure.node]
        alive = node.replica is not None and self._life(tenure.node) == tenure.life
        return alive and tenure.node != record.node and record.at_us + SLACK_US < tenure.until_us

    def _durable(self, record: Record) -> None:
        for key, value in record.subject.meta:
            if key == "leases":
                told: Any = codec.decode(value, bytes_max=64)
                self._bounds[record.node] = max(told[0], self._bounds.get(record.node, 0))

    def _judge_token(self, record: Record, scope: str, token: int, ballot: int, said: list[str]) -> None:
        self.judged("EXCL-2", record.node, record)
        last = self._tokens.get(scope, 0)
        if token <= last:
            self.fail(
                "EXCL-2",
                f"{record.node} is granted {scope} with token {token} after token {last}",
                events=(record.seq,),
            )
        self._tokens[scope] = max(last, token)
        for voter in said:
            bound = self._bounds.get(voter, 0)
            if bound < ballot:
                self.fail(
                    "EXCL-2",
                    f"{voter} voted for ballot {ballot} of {scope}, and its disk never knew of any above {bound}",
                    events=(record.seq,),
                )

    # Programs ------------------------------------------------------------------------------------

    def _program(self, record: Record) -> None:
        owner = record.id
        if record.kind == "lock.call":
            what, name, _ = record.data
            if what == "acquire" and name == PROBE:
                self._probe[owner] = (record.at_us, record.node)
            self._asked.setdefault((name, owner), []).append(record.at_us)
            return
        name, token = record.data[0], record.data[1]
        beliefs = self._beliefs.setdefault(name, {})
        if record.kind == "lock.over":
            beliefs.pop(owner, None)
            self._asked.pop((name, owner), None)
            return
        until_us: int = record.data[2]
        if record.kind == "lock.renewed":
            self._judge_renewal(record, name, token, owner)
        self.judged("EXCL-6", record.node, record)
        for other in list(beliefs.values()):
            if other.owner != owner and min(other.until_us, until_us) > record.at_us + SLACK_US:
                self.fail(
                    "EXCL-6",
                    f"{owner} (token {token}) and {other.owner} (token {other.token}) both hold {name} for "
                    f"{(min(other.until_us, until_us) - record.at_us) / 1e6:.2f} s more",
                    events=(other.seq, record.seq),
                )
        beliefs[owner] = Belief(owner, token, until_us, record.seq)
        known = self._owners.setdefault((name, token), owner)
        self.judged("EXCL-1", record.node, record)
        if known != owner:
            self.fail("EXCL-1", f"{owner} and {known} hold {name} under one token, {token}", events=(record.seq,))
        if name == PROBE:
            self._obtained.setdefault(owner, record.at_us)

    def _judge_renewal(self, record: Record, name: str, token: int, owner: str) -> None:
        """No program is told that it goes on holding what was granted anew before it asked."""
        self.judged("EXCL-7", record.node, record)
        tenure = self._tenures.get(f"user:{name}")
        asked_us = self._asked[name, owner][-1]
        if tenure is not None and tenure.token > token and tenure.since_us < asked_us:
            self.fail(
                "EXCL-7",
                f"{owner} renews {name} under token {token}; {tenure.node} was granted token {tenure.token} before",
                events=(tenure.seq, record.seq),
            )

    def _register(self, record: Record) -> None:
        name, token, outcome, looked = record.data
        self.judged("EXCL-1", record.node, record)
        last = self._written.get(name, 0)
        if outcome == "ok" and token < last:
            self.fail("EXCL-1", f"the register of {name} took token {token} after {last}", events=(record.seq,))
        if outcome == "refused" and looked:
            self.fail(
                "EXCL-1",
                f"{record.id} acted on {name} under token {token} while it held it, and somebody had acted under {last}",
                events=(record.seq,),
            )
        if outcome == "ok":
            self._written[name] = max(last, token)

    # The end -------------------------------------------------------------------------------------

    def at_end(self, world: Any) -> None:
        """With a majority healed, a lease that nobody holds is obtained."""
        for owner, (asked_us, node) in () if self._twins else self._probe.items():
            end_us = self._obtained.get(owner, world.kernel.now_us)
            if owner in self._obtained or end_us - asked_us > OBTAINED_WITHIN_MS * 1_000:
                self.chronicle.vacuity.count_ever("EXCL-9", self.world.nodes[node].region)
            if end_us - asked_us > OBTAINED_WITHIN_MS * 1_000:
                self.fail("EXCL-9", f"{node} could not obtain a lease that nobody held within {OBTAINED_WITHIN_MS} ms")

    # Helpers -------------------------------------------------------------------------------------

    def _life(self, node: str) -> str:
        return self._lives.get(node, ("", 0))[0]

    def _true_us(self, record: Record, mono_ms: int) -> int:
        return self.world.nodes[record.node].clock.true_us(mono_ms, record.at_us)
