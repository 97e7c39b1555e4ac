"""Whatever our reader admits, pycrdt survives, and what it then holds can be read back."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdtsync import text_update
from crdtsync.document_state import Op, encode_ops
from crdtsync.documents import END, DocumentShelf, Splice, client_id
from crdtsync.identifiers import DEFAULT_DOMAIN, EventId, writer_id
from crdtsync.text_update import Item, TextUpdate

EU, US = (writer_id(region, "a", 1, bytes(8)) for region in ("eu", "us"))
KEY = (DEFAULT_DOMAIN, b"", "notes")
SPLICES = [Splice(0, 0, "Hello wörld"), Splice(5, 1, ", "), Splice(END, 0, "漢字"), Splice(0, 5, "Bye")]


def written() -> DocumentShelf:
    shelf = DocumentShelf(EU)
    for number, splice in enumerate(SPLICES, 1):
        shelf.apply(KEY, EventId(number, EU, number, 0), shelf.edit(KEY, {}, text={"t": splice}))
    return shelf


def text_of(shelf: DocumentShelf):
    return shelf._documents[KEY].entries["t"].visible.text


KNOWN = text_of(written())._known[client_id(EU)]
clients = st.sampled_from([client_id(EU), client_id(US), 7])
places = st.none() | st.tuples(clients, st.integers(0, KNOWN + 3))
texts = st.text("ab漢", min_size=1, max_size=3)
items = st.builds(lambda left, right, text: Item(left, right, text, len(text)), places, places, texts)
gone = st.builds(lambda left, right, length: Item(left, right, None, length), places, places, st.integers(0, 5))
ranges = st.lists(st.tuples(st.integers(0, KNOWN), st.integers(0, 5)), max_size=2).map(tuple)
updates = st.builds(
    TextUpdate,
    st.lists(st.tuples(clients, st.integers(0, 2), st.lists(items | gone, max_size=3).map(tuple)), max_size=2).map(
        tuple
    ),
    st.lists(st.tuples(clients, ranges), max_size=2).map(tuple),
)


@given(updates)
def test_reading_inverts_writing(update):
    try:
        assert text_update.parse(text_update.encode(update)) == update
    except ValueError:
        assert not is_well_formed(update)


def is_well_formed(update: TextUpdate) -> bool:
    ids = [client for client, _, _ in update.items]
    deleted = [client for client, _ in update.deleted]
    lengths = [item.length for _, _, items in update.items for item in items]
    return (
        len(set(ids)) == len(ids)
        and len(set(deleted)) == len(deleted)
        and all(lengths)
        and all(i for _, _, i in update.items)
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(updates.map(text_update.encode), max_size=4))
def test_admitted_updates_leave_a_text_that_can_be_read_back(hostile):
    shelf = written()
    for number, update in enumerate(hostile, 1):
        shelf.apply(KEY, EventId(10 + number, US, number, 0), encode_ops([Op(4, "t", (), update)]))
    text_update.check_state(text_update.parse(text_of(shelf).state()))
    again = DocumentShelf(EU)
    again.restore(KEY, shelf.state(KEY))
    assert not again.quarantined
    assert sorted(again.value(KEY)["t"]) == sorted(shelf.value(KEY)["t"])
    length = len(shelf.value(KEY)["t"])
    shelf.apply(KEY, EventId(99, EU, 9, 0), shelf.edit(KEY, {}, text={"t": Splice(END, 0, "!")}))
    assert len(shelf.value(KEY)["t"]) == length + 1


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_with_a_value_error(data):
    for read in (text_update.parse, text_update.parse_clocks):
        with suppress(ValueError):
            read(data)


@pytest.mark.parametrize("cut", range(1, 12))
def test_an_update_that_ends_early_is_refused(cut):
    update = text_update.encode(TextUpdate(((1, 0, (Item(None, None, "text", 4),)),), ((1, ((0, 2),)),)))
    with pytest.raises(ValueError, match="ends too early"):
        text_update.parse(update[:-cut])
