"""The programs in the guides to fencing run as written, against a database, a service and a store."""

import contextlib
import re
import sqlite3
import sys
import threading
import types
import urllib.request
from pathlib import Path

import pytest

from crdtsync.errors import FencedError
from regions.fencing import objects, sql
from regions.fencing.http import Doorkeeper
from tests.integration import postgres
from tests.regions.object_store import ObjectStore

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guides"
BLOCK = re.compile(r"^```python\n# (\w+)\.py\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Ctx:
    """What these handlers ask of theirs."""

    def __init__(self, fence, root="root"):
        self.fence = fence
        self.root = root

    def effect_key(self, name):
        return f"{self.root} {name}".encode()


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Runs one block of a guide, in the folder where its reader would be."""
    monkeypatch.chdir(tmp_path)

    def load(guide, name):
        code = dict(BLOCK.findall((GUIDES / guide).read_text("utf-8")))[name]
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(code, f"{guide}:{name}", "exec"), module.__dict__)
        return module

    return load


def test_the_database_guides_row_refuses_older_tokens(program):
    bank = program("fencing-sql.md", "bank")
    bank.set_rate(Ctx(7), "EUR", 1.1)
    bank.set_rate(Ctx(7), "EUR", 1.2)
    with pytest.raises(FencedError):
        bank.set_rate(Ctx(6), "EUR", 0.5)
    with contextlib.closing(sqlite3.connect("bank.db")) as database:
        assert database.execute("SELECT * FROM rates").fetchall() == [("EUR", 1.2, 7)]


def test_the_database_guides_gate_moves_money_once_and_never_for_the_past(program):
    program("fencing-sql.md", "bank")
    transfer = program("fencing-sql.md", "transfer").transfer
    transfer(Ctx(7, "first"), "A", "B", 10)  # there are no accounts yet
    with contextlib.closing(sqlite3.connect("bank.db")) as database:
        database.execute("INSERT INTO accounts VALUES ('A', 100), ('B', 100)")
        database.commit()
    transfer(Ctx(7, "second"), "A", "B", 10)
    transfer(Ctx(8, "second"), "A", "B", 10)  # the same effect again, by whoever continued it
    with pytest.raises(FencedError):
        transfer(Ctx(7, "third"), "A", "B", 10)
    with contextlib.closing(sqlite3.connect("bank.db")) as database:
        assert database.execute("SELECT cents FROM accounts ORDER BY id").fetchall() == [(90,), (110,)]


def test_the_database_guides_program_for_postgresql_refuses_older_tokens(program, monkeypatch):
    psycopg = pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    if postgres.binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    rates = program("fencing-sql.md", "rates")
    with postgres.server() as conninfo:
        monkeypatch.setenv("RATES_DATABASE", conninfo)
        with psycopg.connect(conninfo) as database:
            database.execute(
                "CREATE TABLE rates (currency TEXT PRIMARY KEY, rate REAL, fence BIGINT NOT NULL DEFAULT 0)"
            )
            database.execute("INSERT INTO rates VALUES ('EUR', 1)")
        rates.set_rate(Ctx(7), "EUR", 1.5)
        with pytest.raises(FencedError):
            rates.set_rate(Ctx(6), "EUR", 0.5)
        with pytest.raises(sql.MissingRowError):
            rates.set_rate(Ctx(7), "XXX", 0.5)
        with psycopg.connect(conninfo) as database:
            assert database.execute("SELECT * FROM rates").fetchall() == [("EUR", 1.5, 7)]


def test_the_service_guides_handler_is_let_in_and_then_refused_by_its_service(program, monkeypatch):
    switch = program("fencing-http.md", "lights").switch
    service = program("fencing-http.md", "service")
    monkeypatch.setattr(service.Junctions, "log_message", lambda *_: None)
    with Doorkeeper("fences.db") as doorkeeper, service.service(0, doorkeeper) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("LIGHTS", url)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            switch(Ctx(7), "J-1", "red")
            switch(Ctx(9), "J-1", "green")
            with pytest.raises(FencedError):
                switch(Ctx(8), "J-1", "red")
            switch(Ctx(8), "J-2", "red")
            plain = urllib.request.Request(f"{url}/junctions/J-1", b'{"state": "off"}', method="PUT")
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(plain, timeout=10)
            with refused.value as answer:
                assert answer.code == 428
        finally:
            server.shutdown()
            thread.join()
    assert service.LIGHTS == {"/junctions/J-1": "green", "/junctions/J-2": "red"}


def test_the_store_guides_report_is_written_under_a_token(program, monkeypatch):
    report = program("fencing-object-stores.md", "reports").report
    stage = ObjectStore()
    with stage.serve() as url:
        monkeypatch.setenv("REPORTS", url)
        assert report(Ctx(7), "november") == stage.objects["/bucket/november.txt"][1]
        with pytest.raises(FencedError):
            report(Ctx(6), "november")


def test_the_store_guides_model_is_published_and_found_by_readers(program, monkeypatch):
    models = program("fencing-object-stores.md", "models")
    stage = ObjectStore(hashed=True)
    with stage.serve() as url:
        monkeypatch.setenv("MODELS", url)
        models.train(Ctx(7), "churn")
        with pytest.raises(FencedError):
            models.train(Ctx(6), "churn")
        assert models.current(lambda name: stage.objects[f"/bucket/{name}"][0], "churn") == b"..."


class Boto:
    """What boto3's client does here, over the same store."""

    class ClientError(Exception):
        def __init__(self, code):
            super().__init__(code)
            self.response = {"Error": {"Code": code}}

    def __init__(self, stage):
        self.stage = stage
        self.exceptions = self

    def head_object(self, Bucket, Key):  # noqa: N803 - boto3's names
        if (stored := self.stage.objects.get(f"{Bucket}/{Key}")) is None:
            raise self.ClientError("404")
        return {"ETag": stored[1], "Metadata": stored[2]}

    def put_object(self, Bucket, Key, Body, Metadata, IfMatch=None, IfNoneMatch=None):  # noqa: N803
        status, tag = self.stage.put(f"{Bucket}/{Key}", Body, Metadata, IfMatch, IfNoneMatch)
        if tag is None:
            raise self.ClientError({412: "PreconditionFailed", 404: "NoSuchKey"}[status])
        return {"ETag": tag}


def test_the_store_guides_adapter_does_what_put_and_publish_need(program):
    stage = ObjectStore(hashed=True)
    store = program("fencing-object-stores.md", "s3").S3Store(Boto(stage), "bucket")
    objects.put(store, "a", b"one", 5)
    objects.put(store, "a", b"two", 7)
    objects.publish(store, "b", b"one", 7)
    for write in (objects.put, objects.publish):
        for name in ("a", "b"):
            with pytest.raises(FencedError):
                write(store, name, b"late", 6)
