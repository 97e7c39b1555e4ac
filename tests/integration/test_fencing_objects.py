"""Conditional writes against an object store that speaks HTTP."""

import json

import pytest

from crdtsync.errors import FencedError, InvalidRequestError, OverloadedError
from regions.fencing import objects
from regions.fencing.objects import HttpStore, Stored, StoreError, UnchangedTagError
from tests.regions.object_store import ObjectStore

NAME = "reports/11 é.csv"
PATH = "/bucket/reports/11%20%C3%A9.csv"


@pytest.fixture(params=[False, True], ids=["own tags", "tags of contents"])
def stage(request):
    stage = ObjectStore(hashed=request.param)
    with stage.serve() as url:
        stage.client = HttpStore(url, timeout_s=10)
        yield stage


@pytest.fixture
def honest(request):
    stage = ObjectStore()
    with stage.serve() as url:
        stage.client = HttpStore(url, timeout_s=10)
        yield stage


def write_as(stage, token, body):
    """Another holder writes, past the client."""
    return lambda path: stage.put(path, body, {"x-amz-meta-crdtsyncfence": str(token)})


def once(function):
    pending = [function]
    return lambda path: pending and pending.pop()(path)


def body_of(stage, path=PATH):
    return stage.objects[path][0]


def test_an_object_is_created_written_again_and_then_refused_to_the_past(stage):
    objects.put(stage.client, NAME, b"one", 5)
    objects.put(stage.client, NAME, b"two", 5)
    objects.put(stage.client, NAME, b"three", 9)
    assert stage.client.look(NAME) == Stored(stage.objects[PATH][1], 9)
    with pytest.raises(FencedError) as refused:
        objects.put(stage.client, NAME, b"late", 8)
    assert refused.value.facts == {"token": 8, "seen": 9}
    assert body_of(stage) == b"three"


def test_a_newer_holder_who_writes_between_look_and_write_is_not_overwritten(stage):
    objects.put(stage.client, NAME, b"one", 5)
    stage.before_put = once(write_as(stage, 9, b"newer"))
    with pytest.raises(FencedError):
        objects.put(stage.client, NAME, b"late", 5)
    assert body_of(stage) == b"newer"


def test_a_newer_holder_who_creates_the_object_in_between_is_not_overwritten(stage):
    stage.before_put = once(write_as(stage, 9, b"newer"))
    with pytest.raises(FencedError):
        objects.put(stage.client, NAME, b"late", 5)
    assert body_of(stage) == b"newer"


def test_an_older_holder_who_writes_in_between_is_overwritten(stage):
    objects.put(stage.client, NAME, b"one", 5)
    stage.before_put = once(write_as(stage, 4, b"older"))
    objects.put(stage.client, NAME, b"mine", 5)
    assert (body_of(stage), stage.client.look(NAME).token) == (b"mine", 5)


def test_an_object_that_is_deleted_in_between_is_created(stage):
    objects.put(stage.client, NAME, b"one", 5)
    stage.before_put = once(stage.objects.pop)
    objects.put(stage.client, NAME, b"mine", 5)
    assert body_of(stage) == b"mine"


def test_an_object_that_nobody_fenced_yet_is_taken_over(stage):
    stage.put(PATH, b"from before", {})
    objects.put(stage.client, NAME, b"mine", 1)
    assert stage.client.look(NAME).token == 1


def test_a_store_where_others_always_win_is_given_up_on(honest):
    honest.before_put = lambda path: honest.put(path, b"busy", {"x-amz-meta-crdtsyncfence": "1"})
    with pytest.raises(OverloadedError):
        objects.put(honest.client, NAME, b"mine", 5)
    assert body_of(honest) == b"busy"


def test_tags_of_contents_let_the_past_in_and_put_says_so():
    """The newer holder writes what stood there, so the tag that the older one looked at is still right."""
    stage = ObjectStore(hashed=True)
    with stage.serve() as url:
        client = HttpStore(url, timeout_s=10)
        objects.put(client, NAME, b"same", 5)
        with pytest.raises(UnchangedTagError):
            objects.put(client, NAME, b"same", 9)
        stage.put(PATH, b"same", {"x-amz-meta-crdtsyncfence": "5"})
        stage.before_put = once(write_as(stage, 9, b"same"))
        objects.put(client, NAME, b"late", 6)  # the danger that `publish` has not
        assert body_of(stage) == b"late"


def test_what_is_published_is_fenced_whatever_the_tags_are(stage):
    first = objects.publish(stage.client, NAME, b"same", 5)
    assert objects.publish(stage.client, NAME, b"same", 5) == first  # as after an answer that was lost
    second = objects.publish(stage.client, NAME, b"same", 9)
    assert first != second
    assert json.loads(body_of(stage)) == {"fence": 9, "object": second}
    assert body_of(stage, "/bucket/" + second.replace(" ", "%20").replace("é", "%C3%A9")) == b"same"
    with pytest.raises(FencedError):
        objects.publish(stage.client, NAME, b"late", 8)
    assert json.loads(body_of(stage))["object"] == second


def test_publishing_between_look_and_write_is_noticed_also_if_the_contents_are_equal(stage):
    objects.publish(stage.client, NAME, b"same", 5)

    def newer(path):
        if path == PATH:
            stage.before_put = lambda _: None
            objects.publish(stage.client, NAME, b"same", 9)

    stage.before_put = newer
    with pytest.raises(FencedError):
        objects.publish(stage.client, NAME, b"late", 6)
    assert json.loads(body_of(stage))["fence"] == 9


def test_an_answer_that_was_not_asked_for_is_an_error_and_tells_what_may_have_happened(honest):
    for status in (500, 403):
        honest.fail_with = [status]
        with pytest.raises(StoreError, match=str(status)):
            objects.put(honest.client, NAME, b"one", 5)
        honest.objects.clear()
        honest.fail_with = [404, status]
        with pytest.raises(StoreError, match=str(status)) as failed:
            objects.put(honest.client, NAME, b"one", 5)
        assert not failed.value.definite
    honest.put(PATH, b"one", {"x-amz-meta-crdtsyncfence": "many"})
    with pytest.raises(StoreError, match="many"):
        objects.put(honest.client, NAME, b"two", 5)


def test_requests_are_signed_with_all_that_they_say(honest):
    with honest.serve() as url:
        signed = []

        def sign(method, path, headers):
            signed.append((method, path))
            return {**headers, "Authorization": f"for {method}"}

        objects.put(HttpStore(url + "/", prefix="x-goog-meta-", sign=sign), NAME, b"one", 5)
    assert signed == [("HEAD", PATH), ("PUT", PATH)]
    assert [headers["Authorization"] for _, _, headers in honest.requests] == ["for HEAD", "for PUT"]
    assert honest.requests[1][2]["x-goog-meta-crdtsyncfence"] == "5"


def test_what_is_no_token_or_no_address_is_refused(honest):
    with pytest.raises(InvalidRequestError):
        objects.put(honest.client, NAME, b"one", 0)
    with pytest.raises(InvalidRequestError):
        objects.publish(honest.client, NAME, b"one", 0)
    assert not honest.requests
    for url in ("file:///tmp", "bucket", "http://"):
        with pytest.raises(ValueError, match="no http"):
            HttpStore(url)
