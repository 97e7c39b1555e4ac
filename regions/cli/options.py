"""Options that many commands share, and the types of their values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from crdtsync.identifiers import is_region, parse_task_id

_Function = TypeVar("_Function", bound=Callable[..., Any])

STATES: Final = ("waiting", "running", "cancelling", "succeeded", "dead", "expired", "cancelled")
CONFIG_FILE: Final = "crdtsync.toml"


def output_option(function: _Function) -> _Function:
    """`-o table|json`: passed as `output`. On every command."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        help="How to print: columns for people, JSON for programs.",
    )(function)


def node_options(function: _Function) -> _Function:
    """`--node URL` and `-o`: passed as `node` and `output`."""
    return output_option(
        click.option(
            "--node",
            metavar="URL",
            envvar="CRDTSYNC_NODE",
            required=True,
            show_envvar=True,
            help="Whom to ask: the ws:// URL of a node.",
        )(function)
    )


def config_option(function: _Function) -> _Function:
    """`--config FILE`: passed as `config_file`, None when neither named nor found in the current directory."""

    def default() -> Path | None:
        return Path(CONFIG_FILE) if Path(CONFIG_FILE).exists() else None

    return click.option(
        "--config",
        "config_file",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="CRDTSYNC_CONFIG",
        default=default,
        show_envvar=True,
        help=f"The node's TOML file; ./{CONFIG_FILE} where it exists.",
    )(function)


class TaskIdType(click.ParamType[bytes]):
    """32 hex digits, dashes allowed; becomes 16 bytes."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        try:
            return value if isinstance(value, bytes) else parse_task_id(value)
        except ValueError:
            self.fail(f"{value!r} is not a task id: 32 hex digits, as task submit printed them", param, ctx)


class PairType(click.ParamType[tuple[str, str]]):
    """`key=value`, as a pair of texts."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not of the form key=value", param, ctx)
        return key, text


class RegionType(click.ParamType[str]):
    name = "region"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not is_region(value):
            self.fail(f"{value!r} is not a region: lower-case letters, digits and dashes", param, ctx)
        return str(value)


TASK_ID: Final = TaskIdType()
PAIR: Final = PairType()
REGION: Final = RegionType()
SECONDS: Final = click.FloatRange(min=0)


def keyword_arguments(pairs: Iterable[tuple[str, str]], as_json: str | None) -> dict[str, Any]:
    """`--arg` and `--args-json` together; a value is JSON if it parses, else text."""
    arguments: dict[str, Any] = {}
    if as_json is not None:
        try:
            arguments = json.loads(as_json)
        except ValueError as error:
            raise click.BadParameter(f"not JSON: {error}", param_hint="--args-json") from None
        if not isinstance(arguments, dict):
            raise click.BadParameter("an object of keyword arguments is needed", param_hint="--args-json")
    for key, text in pairs:
        try:
            arguments[key] = json.loads(text)
        except ValueError:
            arguments[key] = text
    return arguments


def examples(*lines: str) -> str:
    """Example command lines as the epilog of a command's help; the mark keeps click from joining them."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def milliseconds(seconds: float | None) -> int:
    return round((seconds or 0) * 1_000)
