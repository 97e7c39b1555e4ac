"""What the documentation shows is what there is: its programs run, its commands and settings exist."""

import re
import shlex
import sys
import tomllib
from pathlib import Path

import click
import pytest

from crdtsync import App
from regions.cli import cli
from regions.config import Config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)

PROGRAM = """\
from crdtsync import App, Retry

app = App("shop")

@app.task(queue="payments", retry=Retry(attempts=5), compensate="refund")
async def charge(ctx, order: str, cents: int) -> str:
    return await ctx.effect("charge", gateway.charge, order, cents)

@app.task
async def refund(ctx, charged) -> None:
    await gateway.refund(charged.effects["charge"])
"""


def blocks(page, *languages):
    for match in BLOCK.finditer(page.read_text("utf-8")):
        if match["language"] in languages:
            code = match["code"]
            yield "\n".join(line.removeprefix(match["indent"]) for line in code.splitlines()) + "\n"


def commands():
    """Every `$ crdtsync ...` of every page, and where it stands."""
    for page in PAGES:
        for block in blocks(page, "console"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("$ crdtsync "):
                    yield pytest.param(line[2:], id=f"{page.name}: {line[2:60]}")


@pytest.fixture
def examples_on_path(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setenv("SHOP_LEDGER", str(tmp_path / "ledger.jsonl"))
    yield
    sys.modules.pop("shop", None)


def readme_program():
    return next(block for block in blocks(ROOT / "README.md", "python") if 'App("shop")' in block)


def test_the_readme_shows_the_program_that_was_promised():
    assert PROGRAM in readme_program()


def test_the_readme_program_declares_a_charge_that_a_refund_undoes(examples_on_path):
    names = {}
    exec(compile(readme_program(), "README.md", "exec"), names)
    app = names["app"]
    assert isinstance(app, App)
    app.check()
    charge = app["charge"].declaration
    assert (charge.queue, charge.attempts, charge.compensate) == ("payments", 5, "refund")
    assert "refund" in app


async def run_program(names):
    """Charge through the program, then undo it, with the smallest context that will do."""

    class Attempt:
        effects = {}  # noqa: RUF012

    class Ctx:
        async def effect(self, name, function, *args):
            Attempt.effects[name] = await function(*args)
            return Attempt.effects[name]

    charge = await names["charge"](Ctx(), "A-1", 1999)
    await names["refund"](Ctx(), Attempt())
    return charge


def test_the_readme_program_charges_and_refunds_at_the_gateway(examples_on_path, tmp_path):
    import asyncio
    import json

    names = {}
    exec(compile(readme_program(), "README.md", "exec"), names)
    charge = asyncio.run(run_program(names))
    entries = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [(entry["kind"], entry["charge"], entry["repeat"]) for entry in entries] == [
        ("charge", charge, False),
        ("refund", charge, False),
    ]


@pytest.mark.parametrize("line", list(commands()))
def test_documented_commands_exist_with_their_options(line):
    words = shlex.split(line, comments=True)[1:]
    command, path = cli, ["crdtsync"]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        path.append(words.pop(0))
        command = command.get_command(click.Context(command), path[-1])
        assert command is not None, f"there is no {' '.join(path)}"
    command.make_context(" ".join(path), words, resilient_parsing=True)  # raises for options that do not exist


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_the_documentation_compiles(page):
    for code in blocks(page, "python"):
        if not re.match(r"\s*@", code.splitlines()[-1]):  # a decorator alone stands for the function below it
            compile(code, str(page), "exec", flags=0x2000)  # top-level await is allowed


def test_the_configuration_file_of_the_guide_is_sound(tmp_path):
    (block,) = blocks(ROOT / "docs/guides/run-under-systemd.md", "toml")
    config = Config(**tomllib.loads(block))
    assert config.region == "eu"
    assert set(config.members) == {"eu", "us", "ap"}


def test_the_reference_pages_are_what_the_code_says(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import generate_reference

    assert generate_reference.main(["--check"]) == 0


def test_every_exit_code_of_an_error_is_in_the_table():
    from crdtsync.errors import CrdtSyncError

    def kinds(kind):
        yield kind
        for below in kind.__subclasses__():
            yield from kinds(below)

    table = (ROOT / "docs/reference/cli.md").read_text("utf-8")
    for kind in kinds(CrdtSyncError):
        assert f"| {kind.exit_code} |" in table, kind
