"""Documents converge: whatever the order, the repetition and the way by which updates come."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from crdtsync.documents import DocumentShelf, Splice, read_entries
from crdtsync.identifiers import Domain, EventId, writer_id
from crdtsync.protocol.codec import decode_value, encode_value

KEY = (Domain("default"), b"", "notes")
WRITERS = [writer_id(region, "a", 1, bytes(8)) for region in ("eu", "us", "ap")]
NAMES = ["a", "b", "text"]


class Site:
    """A replica of one document: edits, and takes in each writer's events in their order."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.shelf = DocumentShelf(WRITERS[number])
        self.log: list[tuple[EventId, bytes, tuple[int, ...]]] = []  # with what was seen before
        self.seen = [0] * len(WRITERS)
        self.stamp = 0

    def edit(self, **changes) -> None:
        update = self.shelf.edit(KEY, changes.pop("entries", {}), **changes)
        self.stamp += 1
        event = EventId(self.stamp, WRITERS[self.number], len(self.log) + 1, 0)
        self.log.append((event, update, tuple(self.seen)))
        self.take(self, len(self.log) - 1)

    def take(self, other: Site, index: int) -> None:
        event, update, _ = other.log[index]
        self.stamp = max(self.stamp, event.stamp)
        self.shelf.apply(KEY, event, update)
        self.seen[other.number] = max(self.seen[other.number], index + 1)

    def next_from(self, sites: list[Site]) -> list[Site]:
        """The sites whose next event here is causally ready."""
        return [
            other
            for other in sites
            if self.seen[other.number] < len(other.log)
            and all(
                mine >= theirs for mine, theirs in zip(self.seen, other.log[self.seen[other.number]][2], strict=True)
            )
        ]

    @property
    def view(self) -> tuple:
        return self.shelf.value(KEY), self.shelf.fingerprint(KEY), read_entries(self.shelf.state(KEY))


values = st.integers(-3, 3) | st.text(max_size=2) | st.lists(st.integers(0, 3), max_size=2)
characters = st.characters(exclude_categories=["Cs", "Co"])
splices = st.tuples(st.floats(0, 1), st.integers(0, 3), st.text(st.sampled_from("ab é😀\0") | characters, max_size=4))
steps = st.one_of(
    st.tuples(st.just("set"), st.sampled_from(NAMES[1:]), st.none() | values),
    st.tuples(st.just("set"), st.just("a"), st.integers(-3, 3)),
    st.tuples(st.just("add"), st.just("a"), st.integers(1, 5)),
    st.tuples(st.just("append"), st.sampled_from(NAMES), values),
    st.tuples(st.just("text"), st.just("text"), splices),
    st.tuples(st.just("text"), st.just("text"), splices),
    st.tuples(st.just("deliver"), st.integers(0, 2), st.integers(0, 20)),
    st.tuples(st.just("again"), st.integers(0, 2), st.integers(0, 20)),
    st.tuples(st.just("join"), st.integers(0, 2), st.none()),
    st.tuples(st.just("restart"), st.none(), st.none()),
)


def play(sites: list[Site], at: int, step: tuple) -> None:
    site = sites[at]
    match step:
        case ("set", name, value):
            site.edit(entries={name: None if value is None else encode_value(value)})
        case ("add", name, amount):
            site.edit(add={name: amount})
        case ("append", name, value):
            site.edit(append={name: encode_value(value)})
        case ("text", name, (where, delete, insert)):
            before = site.shelf.value(KEY).get(name)
            before = before if isinstance(before, str) and "text" in kinds_of(site, name) else ""
            start = round(where * len(before))
            end = min(len(before), start + delete)
            site.edit(text={name: Splice(start, end - start, insert)})
            assert site.shelf.value(KEY)[name] == before[:start] + insert + before[end:]
        case ("deliver", _, choice):
            ready = site.next_from(sites)
            if ready:
                other = ready[choice % len(ready)]
                site.take(other, site.seen[other.number])
        case ("again", other, index):
            if site.seen[other]:
                site.take(sites[other], index % site.seen[other])
        case ("join", other, _):  # a snapshot: it runs ahead of the log, whose commits come all the same
            site.shelf.join(KEY, sites[other].shelf.state(KEY))
            site.stamp = max(site.stamp, sites[other].stamp)
            site.seen = [max(pair) for pair in zip(site.seen, sites[other].seen, strict=True)]
        case ("restart", _, _):
            state = site.shelf.state(KEY)
            site.shelf = DocumentShelf(WRITERS[at])
            site.shelf.restore(KEY, state)


def kinds_of(site: Site, name: str) -> set[str]:
    entry = site.shelf._documents[KEY].entries[name]
    return {"text"} if entry.visible.text is not None else set()


@settings(deadline=None, max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 2), steps), max_size=30), st.randoms(use_true_random=False))
def test_replicas_with_the_same_updates_are_equal(story, random):
    sites = [Site(number) for number in range(3)]
    for at, step in story:
        play(sites, at, step)
    for site in sites:  # the rest, in any causal order
        while ready := site.next_from(sites):
            other = random.choice(ready)
            site.take(other, site.seen[other.number])
    assert sites[0].view == sites[1].view == sites[2].view
    assert not any(site.shelf.quarantined for site in sites)
    for site in sites:  # joining what is there already, or reading it back, changes nothing
        before = site.view
        for other in sites:
            site.shelf.join(KEY, other.shelf.state(KEY))
        play(sites, site.number, ("restart", None, None))
        assert site.view == before


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.floats(allow_nan=False) | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.binary(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(plain_values)
def test_values_come_back_as_what_was_put_in(value):
    here, there = DocumentShelf(WRITERS[0]), DocumentShelf(WRITERS[1])
    update = here.edit(KEY, {"v": encode_value(value)})
    there.apply(KEY, EventId(1, WRITERS[0], 1, 0), update)
    back = there.value(KEY)["v"]
    assert back == value
    assert type(back) is type(value)
    assert read_entries(there.state(KEY)) == {"v": encode_value(value)}


@given(st.floats())
def test_floats_come_back_bit_by_bit(number):
    shelf = DocumentShelf(WRITERS[0])
    shelf.apply(KEY, EventId(1, WRITERS[0], 1, 0), shelf.edit(KEY, {"v": encode_value(number)}))
    back = shelf.value(KEY)["v"]
    assert (
        math.isnan(back) if math.isnan(number) else (back, math.copysign(1, back)) == (number, math.copysign(1, number))
    )


def text_history() -> tuple[DocumentShelf, list[tuple[EventId, bytes]]]:
    shelf = DocumentShelf(WRITERS[0])
    events = []
    for number, splice in enumerate(
        [Splice(0, 0, "Hello wörld"), Splice(5, 1, ", "), Splice(-1, 0, "!"), Splice(0, 5, "Bye")], 1
    ):
        update = shelf.edit(KEY, {"n": encode_value(number)}, text={"text": splice})
        events.append((EventId(number, WRITERS[0], number, 0), update))
        shelf.apply(KEY, *events[-1])
    return shelf, events


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_updates_never_crash_and_are_the_same_on_every_replica(data):
    """Also those that reach pycrdt: bytes inside the update's text are changed as well."""
    _, events = text_history()
    victim = data.draw(st.integers(0, len(events) - 1))
    damaged = bytearray(events[victim][1])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                damaged[at] = data.draw(st.integers(0, 255))
            case 1:
                damaged.insert(at, data.draw(st.integers(0, 255)))
            case 2 if len(damaged) > 1:
                del damaged[at]
    events[victim] = (events[victim][0], bytes(damaged))
    one, two = DocumentShelf(WRITERS[1]), DocumentShelf(WRITERS[2])
    for event, update in events:
        one.apply(KEY, event, update)
        two.apply(KEY, event, update)
        two.restore(KEY, two.state(KEY))
    assert one.value(KEY) == two.value(KEY)
    assert one.fingerprint(KEY) == two.fingerprint(KEY)
    update = one.edit(KEY, {"after": encode_value(1)})  # and the document can be used further
    one.apply(KEY, EventId(99, WRITERS[1], 1, 0), update)
    assert one.value(KEY)["after"] == 1


@given(st.binary(max_size=200))
def test_garbage_is_void_and_noted(garbage):
    shelf = DocumentShelf(WRITERS[0])
    shelf.apply(KEY, EventId(1, WRITERS[1], 1, 0), garbage)
    assert shelf.value(KEY) == {}
    assert KEY in shelf.quarantined
    assert decode_value(encode_value(shelf.value(KEY))) == {}
