"""Limits that no partition can exceed: who holds how many rights, as a pure fold of facts.

A limit of *n* across regions is *n* rights. A region starts something only under a right that it holds, so however the
network falls apart, what runs everywhere together is at most what was minted. Rights move by an event of the giver and
are nobody's until the receiver has applied it; that is all the coordination there is (escrow: O'Neil, "The escrow
transactional method", TODS 1986; as a replicated type, the bounded counter: Balegas et al., "Extending eventually
consistent cloud databases for enforcing numeric invariants", SRDS 2015). Where we differ from the paper:

- Who mints is one region, and nobody else ever: the first of the limit's rendezvous order over the members that the
  creating event names. A limit that is set again elsewhere is a wish, which that region fills up to. So two sides of a cut
  may set a limit to 10 and to 15, and no more than 15 rights exist at any time (docs/decisions/0014).
- The matrix has a row per *writer*, an incarnation, and a right moves to an incarnation. A node that starts on a disk which
  may be a copy knows which rights it was given since, and uses no others until every member has told what it knows.
- A lowered limit burns rights as they come free, wherever they are held; what was burned too eagerly is minted again.

State per limit: the latest setting, the first, and for each writer a prefix of its log summed up: how much it minted,
burned, moved to whom. Prefixes of one log are ordered, so joining two states takes the longer of each, and folding an event
again changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from crdtsync.errors import RemoteProtocolError
from crdtsync.events import LimitEvent, LimitSet, RightsBurned, RightsInherited, RightsMinted
from crdtsync.identifiers import EventId, RegionId, WriterId, derived_id, region_of
from crdtsync.log.digest import DIGEST_BYTES, NOTHING
from crdtsync.log.shapes import check_events, checked_region, checked_writer, plain_event
from crdtsync.protocol import codec
from crdtsync.scheduling.placement import rendezvous_order

LIMITS_MAX: Final = 1_000  # in a cluster: each is looked at whenever rights may move
AMOUNT_MAX: Final = 1_000_000
STATE_VERSION: Final = 2

Setting = tuple[EventId, LimitSet]


def limit_id(namespace: str, target: str, kind: str) -> bytes:
    """16 bytes that every region derives alike, so that a limit created on two sides of a cut is one."""
    return derived_id(b"limit", namespace.encode(), target.encode(), kind.encode())


class Ledger:
    """What one writer did with the rights of one limit, up to a place in its log."""

    __slots__ = ("burned", "minted", "moved", "place")

    def __init__(self) -> None:
        self.place = (0, 0)  # commit and index of the last event that is counted
        self.minted = 0
        self.burned = 0
        self.moved: dict[WriterId, int] = {}  # to which incarnation, how many

    def to_plain(self) -> tuple[Any, ...]:
        return (*self.place, self.minted, self.burned, tuple(sorted(self.moved.items())))

    @classmethod
    def from_plain(cls, plain: Any) -> Ledger:
        """Inverse of `to_plain`. Raises RemoteProtocolError."""
        if type(plain) is not tuple or tuple(map(type, plain)) != (int, int, int, int, tuple):
            raise RemoteProtocolError("a ledger of rights has another form")
        number, index, minted, burned, moved = plain
        ledger = cls()
        ledger.place, ledger.minted, ledger.burned = (number, index), minted, burned
        for pair in moved:
            if type(pair) is not tuple or tuple(map(type, pair)) != (str, int):
                raise RemoteProtocolError("rights move to a writer, and so many")
            ledger.moved[checked_writer(pair[0])] = pair[1]
        return ledger


class Limit:
    """The facts about one limit. Pure: it never says what may be done, only what was."""

    __slots__ = ("_heirs", "_held", "_said", "apps", "first", "id", "inherited", "latest", "ledgers", "share")

    def __init__(self, id: bytes) -> None:
        self.id = id
        self.latest: Setting | None = None  # what counts
        self.first: Setting | None = None  # the creating one
        self.apps: dict[tuple[RegionId, str], Setting] = {}  # the latest of each app by region: what it said last
        self.ledgers: dict[WriterId, Ledger] = {}
        self.inherited: dict[RegionId, tuple[EventId, RegionId]] = {}  # of whom, by whom; the earliest counts
        # What these are found among. By region, since re-issuing moves what a region wrote, and keeps it in its order.
        self._said: dict[RegionId, tuple[Setting, Setting]] = {}  # its first and its latest
        self._heirs: dict[tuple[RegionId, RegionId], EventId] = {}  # (of whom, by whom)
        self.share = NOTHING  # of the state digest
        self._held: dict[RegionId, int] | None = None

    # Folding -----------------------------------------------------------------------------------

    def fold(self, id: EventId, event: LimitEvent) -> bool:
        """Take one event in. False if it was counted before."""
        if isinstance(event, LimitSet):
            return self._set((id, event))
        if isinstance(event, RightsInherited):
            return self._inherit(RegionId(event.region), (id, id.region))
        ledger = self.ledgers.get(id.writer)
        if ledger is None:
            ledger = self.ledgers[id.writer] = Ledger()
        place = (id.number, id.index)
        if place <= ledger.place:
            return False
        ledger.place = place
        if isinstance(event, RightsMinted):
            ledger.minted += event.amount
        elif isinstance(event, RightsBurned):
            ledger.burned += event.amount
        else:
            to = WriterId(event.to)
            ledger.moved[to] = ledger.moved.get(to, 0) + event.amount
        self._held = None
        return True

    def _set(self, setting: Setting) -> bool:
        id, event = setting
        first, latest = self._said.get(id.region, (setting, setting))
        said = (min(first, setting), max(latest, setting))
        changed = self._said.get(id.region) != said
        self._said[id.region] = said
        if self.latest is None or id > self.latest[0]:
            self.latest = setting
        if self.first is None or id < self.first[0]:
            self.first = setting
        if event.origin != "operator":
            app = (id.region, event.origin)
            if app not in self.apps or id > self.apps[app][0]:
                self.apps[app], changed = setting, True
        return changed

    def _inherit(self, region: RegionId, heir: tuple[EventId, RegionId]) -> bool:
        id, by = heir
        known = self._heirs.get((region, by))
        if known is not None and known <= id:
            return False
        self._heirs[region, by] = id
        if region not in self.inherited or id < self.inherited[region][0] or by == self.inherited[region][1]:
            self.inherited[region] = heir
        return True

    def read_again(self, read: Callable[[EventId], EventId]) -> bool:
        """Events were re-issued: of those kept here by their ids the order is that of their new places."""
        before = (self._said, self.apps, self._heirs)
        settings, heirs = self._settings(), self._heirs
        self.latest = self.first = None
        self.apps, self._said, self._heirs, self.inherited = {}, {}, {}, {}
        for id, event in settings:
            self._set((read(id), event))
        for (region, by), id in heirs.items():
            self._inherit(region, (read(id), by))
        return before != (self._said, self.apps, self._heirs)

    def _settings(self) -> list[Setting]:
        """All that are kept, each once, in the order of their places."""
        return sorted({*(setting for said in self._said.values() for setting in said), *self.apps.values()})

    def join(self, other: Limit) -> bool:
        """Take in all that `other` knows. Whether anything was news."""
        changed = False
        for setting in other._settings():
            changed |= self._set(setting)
        for (region, by), id in other._heirs.items():
            changed |= self._inherit(region, (id, by))
        for writer, ledger in other.ledgers.items():
            mine = self.ledgers.get(writer)
            if mine is None or mine.place < ledger.place:
                self.ledgers[writer] = ledger
                self._held, changed = None, True
        return changed

    # What it comes to --------------------------------------------------------------------------

    @property
    def minted(self) -> int:
        return sum(ledger.minted for ledger in self.ledgers.values())

    @property
    def outstanding(self) -> int:
        """Rights that exist, in whosever hands or on their way."""
        return sum(ledger.minted - ledger.burned for ledger in self.ledgers.values())

    def heir(self, region: RegionId) -> RegionId:
        """Who holds what was that region's: itself, unless it has left for good."""
        seen = {region}
        while region in self.inherited and self.inherited[region][1] not in seen:
            region = self.inherited[region][1]
            seen.add(region)
        return region

    def inherited_by(self, region: RegionId) -> list[tuple[EventId, int]]:
        """What this region took over from others: by which event of its own, and how many rights."""
        self.held()
        assert self._held is not None
        found = []
        for source in sorted(self.inherited):
            last, heir = self.inherited[source]
            seen = {source}
            while heir in self.inherited and heir not in seen:
                seen.add(heir)
                last, heir = self.inherited[heir]
            if heir == region:
                found.append((last, self._held.get(source, 0)))
        return found

    def held(self) -> dict[RegionId, int]:
        """Region -> rights that its own log, as far as it is known here, gives it. Negative never, unless a disk lied."""
        if self._held is None:
            held: dict[RegionId, int] = {}
            for writer, ledger in self.ledgers.items():
                region = region_of(writer)
                held[region] = held.get(region, 0) + ledger.minted - ledger.burned - sum(ledger.moved.values())
                for to, amount in ledger.moved.items():
                    held[region_of(to)] = held.get(region_of(to), 0) + amount
            self._held = held
        if not self.inherited:
            return self._held
        settled: dict[RegionId, int] = {}
        for region, amount in self._held.items():
            heir = self.heir(region)
            settled[heir] = settled.get(heir, 0) + amount
        return settled

    def rights(self, region: RegionId) -> int:
        return self.held().get(region, 0)

    def fresh(self, writer: WriterId) -> int:
        """Rights that this incarnation itself was given, and no earlier one of its node."""
        own = self.ledgers.get(writer)
        spent = 0 if own is None else own.burned + sum(own.moved.values()) - own.minted
        return sum(ledger.moved.get(writer, 0) for ledger in self.ledgers.values()) - spent

    def minter(self) -> RegionId | None:
        """The only region that may mint; None while no setting is known."""
        if self.first is None:
            return None
        first = rendezvous_order(self.id, [RegionId(founder) for founder in self.first[1].founders])[0]
        return self.heir(first)

    # As bytes ----------------------------------------------------------------------------------

    def to_plain(self) -> tuple[Any, ...]:
        """Equal facts give equal values, in whatever order they came."""
        return (
            self.id,
            tuple(map(_plain_setting, self._settings())),
            tuple((region, tuple(id), by) for (region, by), id in sorted(self._heirs.items())),
            tuple((writer, ledger.to_plain()) for writer, ledger in sorted(self.ledgers.items())),
        )

    @classmethod
    def from_plain(cls, plain: Any) -> Limit:
        """Inverse of `to_plain`. Raises RemoteProtocolError."""
        if type(plain) is not tuple or len(plain) != 4 or type(plain[0]) is not bytes:
            raise RemoteProtocolError("a limit has another form")
        id, settings, heirs, ledgers = plain
        limit = cls(id)
        for setting in settings:
            limit._set(_setting(setting))
        for region, event_id, by in heirs:
            limit._inherit(checked_region(region), (_event_id(event_id), checked_region(by)))
        for writer, ledger in ledgers:
            limit.ledgers[checked_writer(writer)] = Ledger.from_plain(ledger)
        return limit

    def hash(self) -> bytes:
        """This limit's share of the state digest."""
        return hashlib.blake2b(codec.encode(self.to_plain()), digest_size=DIGEST_BYTES, person=b"limit").digest()


def _plain_setting(setting: Setting) -> tuple[Any, ...]:
    return (tuple(setting[0]), plain_event(setting[1]))


def _event_id(plain: Any) -> EventId:
    if type(plain) is not tuple or tuple(map(type, plain)) != (int, str, int, int):
        raise RemoteProtocolError("an event id is (stamp, writer, number, index)")
    stamp, writer, number, index = plain
    return EventId(stamp, checked_writer(writer), number, index)


def _setting(plain: Any) -> Setting:
    if type(plain) is not tuple or len(plain) != 2:
        raise RemoteProtocolError("a setting is an event and its id")
    (event,) = check_events((plain[1],))
    if not isinstance(event, LimitSet):
        raise RemoteProtocolError("a setting is a LimitSet")
    return _event_id(plain[0]), event


class LimitTable:
    """All limits of one domain."""

    def __init__(self) -> None:
        self._limits: dict[bytes, Limit] = {}
        self.changed: dict[bytes, None] = {}  # since somebody last emptied it
        self.settings = 0  # grows whenever what is in force may have changed
        self.period_ms_max = 0  # of the rates in force: how long a start is remembered

    def __len__(self) -> int:
        return len(self._limits)

    def __iter__(self) -> Iterator[Limit]:
        return iter(self._limits.values())

    def get(self, id: bytes) -> Limit | None:
        return self._limits.get(id)

    def fold(self, id: EventId, event: LimitEvent) -> tuple[bytes, bytes] | None:
        """Take one event in. The limit's old and new share of the digest; None if nothing changed."""
        limit = self._limits.get(event.limit)
        if limit is None:
            limit = self._limits[event.limit] = Limit(event.limit)
        if not limit.fold(id, event):
            return None
        if isinstance(event, LimitSet):
            self._set()
        return self._noted(limit)

    def read_again(self, read: Callable[[EventId], EventId]) -> list[tuple[bytes, bytes]]:
        """See `Limit.read_again`. The shares of the digest that changed, old and new."""
        changed = [self._noted(limit) for limit in self if limit.read_again(read)]
        if changed:
            self._set()
        return changed

    def _set(self) -> None:
        self.settings += 1
        in_force = [limit.latest[1] for limit in self if limit.latest is not None and limit.latest[1].scope != "none"]
        self.period_ms_max = max((setting.period_ms for setting in in_force), default=0)

    def _noted(self, limit: Limit) -> tuple[bytes, bytes]:
        old, limit.share = limit.share, limit.hash()
        self.changed[limit.id] = None
        return old, limit.share

    def export(self) -> bytes:
        """Everything, for the disk and for snapshots."""
        return codec.encode((STATE_VERSION, tuple(limit.to_plain() for _, limit in sorted(self._limits.items()))))

    def join(self, state: bytes, *, bytes_max: int) -> Iterable[tuple[bytes, bytes]]:
        """Take in what `export` gave, here or elsewhere. The shares of the digest that changed, old and new.

        Raises:
            RemoteProtocolError: It is no such state. Nothing has changed.
        """
        plain: Any = codec.decode(state, bytes_max=bytes_max)
        if type(plain) is not tuple or len(plain) != 2 or plain[0] != STATE_VERSION:
            raise RemoteProtocolError("a state of limits has another form than this version's")
        changed = []
        for other in [Limit.from_plain(each) for each in plain[1]]:
            limit = self._limits.setdefault(other.id, Limit(other.id))
            if limit.join(other):
                changed.append(self._noted(limit))
        self._set()
        return changed
