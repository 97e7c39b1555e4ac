"""What a document promises its users, rule by rule. Its laws are in tests/properties/test_documents.py."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pycrdt
import pytest

from crdtsync import documents, text_update
from crdtsync.document_state import KEY_BYTES_MAX, TOTAL_MAX, UPDATE_BYTES_MAX, Op, encode_ops
from crdtsync.documents import DOCUMENT_BYTES_MAX, END, DocumentShelf, Splice, client_id, read_entries
from crdtsync.effects import DocumentRow
from crdtsync.errors import InvalidRequestError, PayloadTooLargeError, RemoteProtocolError
from crdtsync.identifiers import DEFAULT_DOMAIN, EventId, writer_id
from crdtsync.protocol import codec
from crdtsync.protocol.codec import encode_value

EU, US = (writer_id(region, "a", 1, bytes(8)) for region in ("eu", "us"))
KEY = (DEFAULT_DOMAIN, b"", "notes")
DATA = Path(__file__).parents[3] / "shared" / "data" / "crdt"


class Region:
    """A shelf, and the events that it made."""

    def __init__(self, writer=EU):
        self.writer = writer
        self.shelf = DocumentShelf(writer)
        self.number = 0

    def edit(self, stamp, /, **changes):
        """Edit here at a time, and return the event as other regions receive it."""
        changes.setdefault("entries", {})
        entries = {key: None if value is None else encode_value(value) for key, value in changes.pop("entries").items()}
        changes["append"] = {key: encode_value(value) for key, value in changes.get("append", {}).items()}
        self.number += 1
        event = (KEY, EventId(stamp, self.writer, self.number, 0), self.shelf.edit(KEY, entries, **changes))
        self.shelf.apply(*event)
        return event

    @property
    def value(self):
        return self.shelf.value(KEY)


@pytest.fixture
def eu():
    return Region(EU)


@pytest.fixture
def us():
    return Region(US)


def exchange(eu, us, ours, theirs):
    us.shelf.apply(*ours)
    eu.shelf.apply(*theirs)
    assert eu.value == us.value
    assert eu.shelf.fingerprint(KEY) == us.shelf.fingerprint(KEY)
    return eu.value


# Entries -----------------------------------------------------------------------------------------


def test_of_concurrent_writes_the_later_stamp_wins(eu, us):
    assert exchange(eu, us, eu.edit(5, entries={"a": "eu", "b": 1}), us.edit(6, entries={"a": "us"})) == {
        "a": "us",
        "b": 1,
    }


def test_a_write_beats_the_delete_that_it_has_seen_and_the_other_way_round(eu, us):
    us.shelf.apply(*eu.edit(1, entries={"a": 1}))
    us.edit(2, entries={"a": None})
    assert us.value == {}
    us.edit(3, entries={"a": 3})
    assert us.value == {"a": 3}


def test_a_concurrent_delete_wins_by_stamp_too(eu, us):
    us.shelf.apply(*eu.edit(1, entries={"a": 1}))
    assert exchange(eu, us, eu.edit(3, entries={"a": None}), us.edit(2, entries={"a": 2})) == {}


def test_what_several_regions_add_is_summed(eu, us):
    us.shelf.apply(*eu.edit(1, entries={"n": 10}))
    assert exchange(eu, us, eu.edit(2, add={"n": 5, "m": 1}), us.edit(3, add={"n": -2})) == {"n": 13, "m": 1}


def test_an_amount_counts_once_however_often_it_comes(eu, us):
    first, second = eu.edit(1, add={"n": 5}), eu.edit(2, add={"n": 1})
    for event in (first, first, second, first, second):
        us.shelf.apply(*event)
    assert us.value == {"n": 6}


def test_joining_an_older_state_takes_nothing_back(eu, us):
    eu.edit(1, entries={"a": 1}, add={"n": 5}, append={"l": "x"}, text={"t": Splice(0, 0, "one")})
    old = eu.shelf.state(KEY)
    eu.edit(2, entries={"a": 2}, add={"n": 1}, append={"l": "y"}, text={"t": Splice(END, 0, " two")})
    new = eu.value
    eu.shelf.join(KEY, old)
    assert eu.value == new == {"a": 2, "n": 6, "l": ["x", "y"], "t": "one two"}
    us.shelf.join(KEY, eu.shelf.state(KEY))
    us.shelf.join(KEY, old)
    assert us.value == new


def test_appended_items_stand_in_the_order_of_the_cluster(eu, us):
    us.shelf.apply(*eu.edit(1, entries={"l": ["start"], "s": "alone"}))
    late, early = eu.edit(9, append={"l": "late", "s": 1}), us.edit(8, append={"l": "early"})
    assert exchange(eu, us, late, early) == {"l": ["start", "early", "late"], "s": ["alone", 1]}


def test_a_later_write_starts_afresh(eu, us):
    us.shelf.apply(*eu.edit(1, add={"n": 5}, append={"l": 1}, text={"t": Splice(0, 0, "old")}))
    ours = eu.edit(2, entries={"n": 100, "l": None, "t": None})
    theirs = us.edit(3, add={"n": 7}, append={"l": 2}, text={"t": Splice(END, 0, "er")})  # on what was replaced
    assert exchange(eu, us, ours, theirs) == {"n": 100}
    eu.edit(4, add={"n": 1}, text={"t": Splice(0, 0, "new")})
    assert eu.value == {"n": 101, "t": "new"}


# Text --------------------------------------------------------------------------------------------


def test_what_several_regions_write_is_merged_character_by_character(eu, us):
    us.shelf.apply(*eu.edit(1, text={"t": Splice(0, 0, "The payment failed.")}))
    ours, theirs = eu.edit(2, text={"t": Splice(4, 7, "charge")}), us.edit(3, text={"t": Splice(END, 0, " Retried.")})
    assert exchange(eu, us, ours, theirs) == {"t": "The charge failed. Retried."}


def test_characters_beyond_the_basic_plane_stay_whole(eu, us):
    us.shelf.apply(*eu.edit(1, text={"t": Splice(0, 0, "a😀b\U0010ffff\U00010000")}))
    assert exchange(eu, us, eu.edit(2, text={"t": Splice(1, 1, "🎉")}), us.edit(3, text={"t": Splice(2, 0, "é")})) == {
        "t": "a🎉éb\U0010ffff\U00010000"
    }


@pytest.mark.parametrize(
    "splice",
    [
        Splice(3, 0, ""),
        Splice(-2, 0, "x"),
        Splice(0, 3, ""),
        Splice(1, -1, ""),
        Splice(0, 0, "\ue123"),
        Splice(0, 0, "\ud800"),
    ],
)
def test_a_change_beyond_the_text_is_refused(eu, splice):
    eu.edit(1, text={"t": Splice(0, 0, "ab")})
    with pytest.raises(InvalidRequestError, match="text 't'"):
        eu.shelf.edit(KEY, {}, text={"t": splice})


def test_an_empty_change_changes_nothing(eu, us):
    us.shelf.apply(*eu.edit(1, text={"t": Splice(0, 0, "ab")}))
    us.shelf.apply(*eu.edit(2, text={"t": Splice(1, 0, "")}))
    assert us.value == {"t": "ab"}
    assert not us.shelf.quarantined


def test_client_ids_derive_from_the_incarnation():
    ids = [client_id(writer_id("eu", "a", number, bytes(8))) for number in range(1, 100)]
    assert len(set(ids)) == len(ids)
    assert all(0 < number < 2**53 for number in ids)
    assert client_id(EU) == 0x29808ED9871, "it is part of what is stored"


# Limits ------------------------------------------------------------------------------------------


def test_edits_beyond_a_limit_are_refused(eu):
    shelf = eu.shelf
    for key in ("", "k" * (KEY_BYTES_MAX + 1), "é" * (KEY_BYTES_MAX // 2 + 1)):
        with pytest.raises(InvalidRequestError, match="key"):
            shelf.edit(KEY, {key: encode_value(1)})
    with pytest.raises(InvalidRequestError, match="once"):
        shelf.edit(KEY, {"a": None}, add={"a": 1})
    with pytest.raises(InvalidRequestError, match="not a value"):
        shelf.edit(KEY, {"a": b"\xff"})
    with pytest.raises(InvalidRequestError, match="too much"):
        shelf.edit(KEY, {}, add={"a": TOTAL_MAX + 1})
    with pytest.raises(PayloadTooLargeError, match="limit"):
        shelf.edit(KEY, {"a": encode_value(bytes(DOCUMENT_BYTES_MAX))})
    assert eu.value == {}


def test_a_document_grows_up_to_its_limit_and_shrinks_again(eu):
    eighth = bytes(DOCUMENT_BYTES_MAX // 8)
    for stamp in range(1, 8):
        eu.edit(stamp, entries={f"k{stamp}": eighth})
    with pytest.raises(PayloadTooLargeError, match="limit"):
        eu.edit(8, entries={"k8": eighth})
    assert len(eu.shelf.state(KEY)) <= DOCUMENT_BYTES_MAX
    eu.edit(9, entries={f"k{number}": b"" for number in range(1, 8)})
    for stamp in range(10, 500):  # replacing is not growing
        eu.edit(stamp, entries={"k1": bytes(10_000)})


def test_sums_beyond_the_limit_are_void_for_everybody(eu, us):
    for number in range(3):
        us.shelf.apply(*eu.edit(number, add={"n": TOTAL_MAX - number}))
    assert eu.value == us.value == {"n": TOTAL_MAX}


# Bytes from outside ------------------------------------------------------------------------------


def text_op(update, key="t"):
    return encode_ops([Op(4, key, (), update)])


def nested_arrays(depth):
    """The update that ends a process which hands it to pycrdt, for depths from about 50,000."""
    return b"\x01\x01\x05\x00\x08\x01\x01t\x01" + b"\x75\x01" * depth + b"\x75\x00" + b"\x00"


ours = client_id(US)


def item(left, right, text):
    return text_update.Item(left, right, text, len(text))


def update_of(*items, client=None, first=0, deleted=()):
    return text_update.encode(text_update.TextUpdate(((client or ours, first, items),) if items else (), deleted))


HOSTILE = {
    "garbage": b"\xff\x00",
    "nesting": nested_arrays(100_000),
    "another writer's name": update_of(item(None, None, "x"), client=client_id(EU)),
    "a gap": update_of(item(None, None, "x"), first=7),
    "unknown neighbour": update_of(item((client_id(EU), 99), None, "x")),
    "itself as neighbour": update_of(item((ours, 0), None, "x")),
    "deletes what is to come": update_of(deleted=((client_id(EU), ((0, 1_000),)),)),
    "burns the clock": bytes([1, 1]) + update_of(item(None, None, "x"))[2:-1][:8] + b"\x00\x00\x64\x00",
    "half a character": b"\x01\x01\x05\x00\x04\x01\x01t\x01\xc3\x00",
    "a surrogate pair": update_of(item(None, None, "😀")._replace(length=2)),
    "another root": update_of(item(None, None, "x")).replace(b"\x01t", b"\x01u"),
    "two sections": text_update.encode(text_update.TextUpdate(((ours, 0, (item(None, None, "x"),)),) * 2, ())),
    "a long number": update_of(item(None, None, "x")).replace(b"\x01t\x01x", b"\x01t\x81\x00x"),
    "something after it": update_of(item(None, None, "x")) + b"\x00",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_never_reaches_pycrdt(eu, name):
    eu.edit(1, text={"t": Splice(0, 0, "kept")}, entries={"a": 1})
    update = encode_ops([Op(0, "b", content=encode_value(2)), Op(4, "t", (), HOSTILE[name])])
    eu.shelf.apply(KEY, EventId(2, US, 1, 0), update)
    assert eu.value == {"a": 1, "b": 2, "t": "kept"}
    assert "part of update us/a#1" in eu.shelf.quarantined[KEY]
    eu.edit(3, text={"t": Splice(END, 0, "!")})
    assert eu.value["t"] == "kept!"


@pytest.mark.parametrize(
    "update",
    [
        b"", b"\x80", encode_value({"a": 1}), codec.encode((2, ())), codec.encode((1, ((0, "a"),))),
        codec.encode((1, ((0, "", b"\x01"),))), codec.encode((1, ((9, "a", (), b""),))),
        codec.encode((1, ((2, "a", (), b"1"),))), codec.encode((1, ((2, "a", (1, "nobody", 1, 1, 1), 1),))),
        codec.encode((True, ((0, "a", b"\x01"),))), codec.encode((1, ((False, "a", b"\x01"),))),
        codec.encode((1, ((0, "a", b"\x01"), (1, "a")))), bytes(UPDATE_BYTES_MAX + 1),
    ],
)  # fmt: skip
def test_malformed_updates_are_void_and_noted(eu, update):
    eu.shelf.apply(KEY, EventId(2, US, 1, 0), update)
    assert eu.value == {}
    assert "is void" in eu.shelf.quarantined[KEY]


def test_a_value_that_is_none_is_shown_as_its_bytes(eu):
    eu.shelf.apply(KEY, EventId(2, US, 1, 0), encode_ops([Op(0, "a", content=b"\xff")]))
    assert eu.value == {"a": b"\xff"}


@pytest.mark.parametrize(
    "state",
    [
        b"\x01", codec.encode((2, (), ())), codec.encode((1, ("nobody",), ())), codec.encode((1, (), (("a", (1, 0, 1, 1, 1), None, ()),))),
        codec.encode((1, (EU,), (("a", (1, -1, 1, 1, 1), None, ()),))), codec.encode((1, (), ((b"a", (), None, ()),))),
        codec.encode((1, (), (("a", (), None, (((), (), (), b"\xff"),)),))), codec.encode((1, (), (("a", (), None, (((), (), ()),)),))),
        codec.encode((1, (), 7)), codec.encode((1, (), (("a", (), "text", ()),))),
    ],
)  # fmt: skip
def test_a_peers_state_that_is_none_is_refused(eu, state):
    with pytest.raises(RemoteProtocolError):
        eu.shelf.join(KEY, state)
    eu.shelf.restore(KEY, state)
    assert "cannot be read back" in eu.shelf.quarantined[KEY]


def test_text_that_refers_to_itself_in_a_circle_is_thrown_out_again(eu):
    """Each reference is known, so only pycrdt finds out: it would keep both waiting, invisibly."""
    eu.edit(1, text={"t": Splice(0, 0, "kept")})
    one, two = client_id(EU), ours
    circle = text_update.encode(
        text_update.TextUpdate(((one, 0, (item((two, 0), None, "a"),)), (two, 0, (item((one, 0), None, "b"),))), ())
    )
    with pytest.raises(RemoteProtocolError, match="never be placed"):
        Region(US).shelf.join(KEY, codec.encode((1, (), (("t", (), None, (((), (), (), circle),)),))))
    assert eu.value == {"t": "kept"}


def test_a_panic_costs_one_update_and_not_the_process(eu):
    with pytest.raises(BaseException) as caught:
        pycrdt.Doc().get("m", type=pycrdt.Map)["int"] = 2**63
    assert not isinstance(caught.value, Exception), "a panic is a BaseException"
    eu.edit(1, text={"t": Splice(0, 0, "kept")})

    class Panicking(pycrdt.Doc):
        def apply_update(self, _update):
            raise caught.value

    text = eu.shelf._documents[KEY].entries["t"].visible.text
    text._doc = Panicking()
    update = eu.shelf.edit(KEY, {"a": encode_value(1)})
    eu.shelf.apply(KEY, EventId(2, US, 1, 0), text_op(update_of(item((client_id(EU), 3), None, "!"))))
    assert "pycrdt" in eu.shelf.quarantined[KEY]
    eu.shelf.apply(KEY, EventId(3, EU, 2, 0), update)
    assert eu.value == {"a": 1, "t": "kept"}

    class Interrupted(pycrdt.Doc):
        def apply_update(self, _update):
            raise KeyboardInterrupt

    text._doc = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        eu.shelf.apply(KEY, EventId(4, US, 2, 0), text_op(update_of(item((client_id(EU), 3), None, "!"))))


# Storing -----------------------------------------------------------------------------------------


def test_changed_documents_are_stored_once(eu):
    assert not eu.shelf.dirty
    eu.edit(1, entries={"a": 1})
    other = (DEFAULT_DOMAIN, b"\x01" * 16, "")
    eu.shelf.apply(other, EventId(2, US, 1, 0), eu.shelf.edit(other, {"b": encode_value(2)}))
    assert eu.shelf.dirty
    rows = eu.shelf.take_dirty(DEFAULT_DOMAIN)
    assert rows == [DocumentRow(*KEY, eu.shelf.state(KEY)), DocumentRow(*other, eu.shelf.state(other))]
    assert not eu.shelf.dirty
    assert eu.shelf.take_dirty(DEFAULT_DOMAIN) == []
    assert eu.shelf.rows(DEFAULT_DOMAIN) == rows
    assert eu.shelf.keys(DEFAULT_DOMAIN) == [KEY, other]

    again = DocumentShelf(US)
    for row in rows:
        again.restore((row.domain, row.task, row.name), row.state)
    assert not again.dirty
    assert again.rows(DEFAULT_DOMAIN) == rows
    assert again.value(other) == {"b": 2}


def test_a_worker_reads_the_entries_of_a_state(eu):
    assert read_entries(b"") == {}
    eu.edit(1, entries={"a": {"x": 2**63}, "gone": 1}, add={"n": 3}, append={"l": 1}, text={"t": Splice(0, 0, "é")})
    eu.edit(2, entries={"gone": None})
    entries = {"a": {"x": 2**63}, "n": 3, "l": [1], "t": "é"}
    assert read_entries(eu.shelf.state(KEY)) == {key: encode_value(value) for key, value in entries.items()}
    assert eu.value == entries


def test_a_long_text_history_is_kept_as_one_piece(eu, us):
    for number in range(1, 3 * documents.TEXT_LOG_MAX):
        us.shelf.apply(*eu.edit(number, text={"t": Splice(END, 0, f"{number} ")}))
    text = us.shelf._documents[KEY].entries["t"].visible.text
    assert len(text._since) <= documents.TEXT_LOG_MAX
    text._rebuild()
    assert us.value == eu.value


# Recorded data -----------------------------------------------------------------------------------


def recorded(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return gzip.decompress(path.read_bytes())


def test_real_yjs_text_is_read_byte_for_byte(monkeypatch):
    """104,852 characters typed into Yjs: our reader and theirs agree on all 12,387 items."""
    update = recorded("b4-update.bin.gz")
    monkeypatch.setattr(text_update, "ROOT", "text")
    parsed = text_update.parse(update)
    text_update.check_state(parsed)
    assert text_update.encode(parsed) == update
    assert sum(len(items) for _, _, items in parsed.items) == 12_387
    text = documents._Text()
    text.join(update)
    assert hashlib.sha256(text.content().encode()).hexdigest().startswith("a489e9022976c14e")


@pytest.mark.slow
def test_a_recorded_session_of_two_writers_ends_in_its_recorded_text():
    """26,078 edits with 2,258 merges, replayed through two regions: positions are right on the way."""
    trace = json.loads(recorded("trace_friendsforever.json.gz"))
    regions = [Region(EU), Region(US)]
    events = [[], []]
    have = [[0, 0], [0, 0]]  # per region: how many events of each it has
    vectors = []  # per transaction: the events of each region that it rests on, itself included

    def catch_up(here, wanted):
        for other in (0, 1):
            for event in events[other][have[here][other] : wanted[other]]:
                regions[here].shelf.apply(*event)
            have[here][other] = max(have[here][other], wanted[other])

    for index, txn in enumerate(trace["txns"], 1):
        here = txn["agent"]
        wanted = [max((vectors[parent][n] for parent in txn["parents"]), default=0) for n in (0, 1)]
        catch_up(here, wanted)
        assert have[here] == wanted
        for at, delete, insert in txn["patches"]:
            events[here].append(regions[here].edit(index, text={"text": Splice(at, delete, insert)}))
            have[here][here] += 1
        vectors.append(list(have[here]))
    for here in (0, 1):
        catch_up(here, [len(each) for each in events])
        assert regions[here].value["text"] == trace["endContent"]
        assert not regions[here].shelf.quarantined
    assert regions[0].shelf.fingerprint(KEY) == regions[1].shelf.fingerprint(KEY)
