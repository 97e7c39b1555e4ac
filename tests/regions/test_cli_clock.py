"""What `crdtsync clock show` and `crdtsync log reissue` print, of a replica's own record."""

import json
import re
from pathlib import Path

import pytest

from crdtsync import commands
from crdtsync.clock import make_stamp
from crdtsync.events import Ended
from crdtsync.identifiers import RegionId, TaskId, WriterId
from crdtsync.log.commit import NO_HASH, seal
from regions import cli
from tests.cluster import Cluster
from tests.regions.fake_desk import AnsweringNode

PAGE = (Path(__file__).resolve().parents[2] / "docs/reference/json.md").read_text("utf-8")
US = WriterId("us/a#7-0123456789abcdef")
FAR_MS = 7_200_000


@pytest.fixture(scope="module")
def records():
    """The clock of a region that is right, and of one that is not, as replicas tell them."""
    cluster = Cluster("eu", "us", "ap", walls={"us": 30_000})
    cluster.run_for(55_000)
    return {region: cluster.nodes[RegionId(region)].ask(commands.ShowClock()) for region in ("eu", "us")}


@pytest.fixture
def ask(tmp_path, capsys, monkeypatch, records):
    ended = Ended(TaskId(bytes(15) + b"\x07"), (1, US, 1, 0), "ok", False, True, "", b"\xf6")
    stamp = make_stamp(records["eu"]["time_ms"] + FAR_MS)
    blob = seal("default", US, 1, stamp=stamp, deps=[], previous=NO_HASH, events=[ended]).blob
    answers = {
        commands.LogHeads: [{"domain": "default", "writer": US, "head": 1, "floor": 0}],
        commands.ReissueLog: lambda command: {"writers": [[command.writer, command.first, 1]]},
        commands.ReadLog: lambda command: [blob] if command.first == 1 else [],
    }

    def run(*arguments, region="eu"):
        with AnsweringNode(tmp_path, answers | {commands.ShowClock: records[region]}) as node:
            monkeypatch.setenv("CRDTSYNC_NODE", node.url)
            code = cli.run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_clock_show_tells_verdict_offsets_and_what_is_held_back(ask):
    code, out, err = ask("clock", "show")
    assert code == 0
    assert re.search(r"^verdict: +agrees$", out, re.MULTILINE)
    assert "2 agree, 3 measured, 2 needed" in out
    assert re.search(r"^ +us +off +30000 +21 +40 +\d+ +0 +\d+$", out, re.MULTILINE)
    assert "clock.peer peer=us" in err


def test_clock_show_of_a_region_that_is_off_says_what_to_do_and_exits_with_1(ask):
    code, out, err = ask("clock", "show", region="us")
    assert code == 1
    assert "off: nothing new is stamped" in out
    assert "30 s ahead of a majority of the regions" in err
    assert "set this machine's clock right" in err


@pytest.mark.parametrize("region, expected", [("eu", 0), ("us", 1)])
def test_clock_show_prints_the_record_as_json(ask, records, region, expected):
    code, out, _ = ask("clock", "show", "-o", "json", region=region)
    assert (code, json.loads(out)) == (expected, records[region])


def test_every_key_of_the_clock_is_described(records):
    section = re.search(r"^## clock show$(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)[1]
    words = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([^`]+)`", section))))
    for record in records.values():
        assert set(record) <= words
        assert set(record["majority"]) | set(record["peers"][0]) <= words
        assert all(set(held) <= words for held in record["held_back"])


def test_reissue_shows_what_would_be_made_anew(ask):
    code, out, _ = ask("log", "reissue", US, "--from", "1", "-o", "json")
    plan = json.loads(out)
    assert code == 0
    assert (plan["commits"], plan["events"], plan["kinds"]) == (1, 1, {"Ended": 1})
    assert (plan["ahead_ms"], plan["needed"]) == (FAR_MS, True)
    assert plan["tasks"] == ["00" * 15 + "07"]


def test_reissue_asks_the_node_to_do_it_only_when_told_to(ask):
    code, out, _ = ask("log", "reissue", US, "--from", "1", "--yes", "-o", "json")
    assert code == 0
    assert json.loads(out)["reissued"] == [[US, 1, 1]]
    code, out, err = ask("log", "reissue", US, "--from", "1")
    assert code == 0
    assert "reissued" not in out
    assert "nothing was changed" in err


@pytest.mark.parametrize("writer, first, code", [("ap/a#1-0000000000000000", 1, 3), (US, 2, 2)])
def test_reissue_of_what_is_not_there_is_an_error(ask, writer, first, code):
    assert ask("log", "reissue", writer, "--from", str(first))[0] == code
