"""Write the reference pages that are computed from the code: command line, configuration, conflicts.

    python docs/generate_reference.py            write them
    python docs/generate_reference.py --check    exit 1 if they are not what would be written

A test runs the check, so a page cannot say what the code does not do.
"""

import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from crdtsync.conflicts import RESOLUTIONS
from regions.cli import cli
from regions.config import Config, variable_of

REFERENCE = Path(__file__).resolve().parent / "reference"

CLI_HEAD = """\
# Command line

<!-- Written by docs/generate_reference.py from the commands' own help: change it there. -->

`crdtsync`, a noun, a verb. Data goes to stdout, messages to stderr. `--node URL`, or `CRDTSYNC_NODE`, says whom to ask.
`-o json` prints JSON on every command; [JSON](json.md) says what is in it. Colour appears on a terminal only, and never
where `NO_COLOR` is set. `--help` works everywhere.

## Exit codes

| code | means |
|---|---|
| 0 | it worked |
| 1 | the task failed, or a check did |
| 2 | usage: the command makes no sense as written, or asks for what is not built yet |
| 3 | not found: no such task or conflict, or a task name that no app ever declared |
| 4 | conflict: the state of the task does not allow it, or the key is taken by another payload |
| 5 | not permitted |
| 69 | unreachable: no node answers; where something was sent, the message says that it may have happened |
| 75 | retry later: a limit is reached, the node is shutting down, or its clock is off |
| 78 | configuration |
| 124 | it did not end in time; it goes on |
| 130 | Ctrl-C |
"""

CONFIG_HEAD = """\
# Configuration

<!-- Written by docs/generate_reference.py from regions/config.py: change it there. -->

What a node can be told. It comes from a TOML file (`--config`, `CRDTSYNC_CONFIG`, or `crdtsync.toml` in the current
directory), then from environment variables, then from the command line; what is said later wins. Keys that nobody knows
are errors. A change takes effect when the node is started again.

```console
$ crdtsync config check --config eu.toml
$ crdtsync config show --config eu.toml --origin
```

A whole file stands in [run a node under systemd](../guides/run-under-systemd.md#configure).

"""


CONFLICTS_HEAD = """\
# Conflicts

<!-- Written by docs/generate_reference.py from crdtsync/conflicts.py: change it there. -->

Every kind of conflict, the rule that decides it, and who wins. Kinds and rules are stable names: programs and metrics
use them. [Conflicts and compensation](../concepts/conflicts-and-compensation.md) says why the rules are as they are.

| kind | rule | what stands | what is said |
|---|---|---|---|
"""


def main(arguments: list[str]) -> int:
    pages = {
        REFERENCE / "cli.md": cli_page(),
        REFERENCE / "config.md": config_page(),
        REFERENCE / "conflicts.md": conflicts_page(),
    }
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text("utf-8") != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.name} is not what the code says; run: python docs/generate_reference.py", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages[path], "utf-8")
        print(f"wrote {path.name}", file=sys.stderr)
    return 0


def cli_page() -> str:
    parts = [CLI_HEAD]
    for path, command in commands_of(cli, ("crdtsync",)):
        title = " ".join(path)
        if isinstance(command, click.Group):
            parts.append(f"## {title}\n\n{prose(command.help or '')}\n")
            continue
        # A command that stands alone gets a heading of its own level; the verbs of a noun stand below the noun.
        level = "##" if len(path) == 2 else "###"
        parts.append(f"{level} {title}\n\n```text\n{usage(path, command)}\n```\n\n{prose(command.help or '')}\n")
        if command.epilog:
            parts.append(f"{prose(command.epilog)}\n")
        rows = [row for parameter in command.params if (row := parameter_row(parameter, command))]
        if rows:
            parts.append("| option | |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def commands_of(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every visible command below `group`, groups before what is in them."""
    context = click.Context(group, info_name=path[-1])
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if command.hidden:
            continue
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands_of(command, (*path, name))


def usage(path: tuple[str, ...], command: click.Command) -> str:
    context = click.Context(command, info_name=path[-1])
    return " ".join([*path, *command.collect_usage_pieces(context)])


def parameter_row(parameter: click.Parameter, command: click.Command) -> str:
    if not isinstance(parameter, click.Option) or parameter.hidden:
        return ""
    context = click.Context(command)
    record = parameter.get_help_record(context)
    assert record is not None
    names, text = record
    return f"| `{names.replace('|', chr(92) + '|')}` | {' '.join(text.split()).replace('|', chr(92) + '|')} |"


def prose(text: str) -> str:
    """A help text as Markdown: what click keeps as it is becomes code."""
    blocks = []
    for block in inspect.cleandoc(text).split("\n\n"):
        kept = block.strip()
        if not kept.startswith("\b"):
            blocks.append(kept)
            continue
        title, *lines = kept.removeprefix("\b").lstrip("\n").split("\n")
        if not title.endswith(":"):
            title, lines = "", [title, *lines]
        code = textwrap.dedent("\n".join(lines))
        blocks.append(f"{title}\n\n```text\n{code}\n```".lstrip("\n"))
    return "\n\n".join(blocks)


def config_page() -> str:
    parts = [CONFIG_HEAD]
    parts.append("| key | variable | default | |\n|---|---|---|---|")
    parts.extend(config_rows(Config, ""))
    return "\n".join(parts) + "\n"


def config_rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from config_rows(inner, f"{key}.")
            continue
        default = default_of(field)
        bounds = bounds_of(field)
        text = f"{field.description}{f' {bounds}' if bounds else ''}"
        yield f"| `{key}` | `{variable_of(key)}` | {default} | {text} |"


def default_of(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value in ({}, ""):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def bounds_of(field: Any) -> str:
    low = next((item.ge for item in field.metadata if getattr(item, "ge", None) is not None), None)
    high = next((item.le for item in field.metadata if getattr(item, "le", None) is not None), None)
    if low is None and high is None:
        return ""
    if high is None:
        return f"At least {low:,}."
    return f"{low:,} to {high:,}." if low is not None else f"At most {high:,}."


def conflicts_page() -> str:
    rows = [
        f"| `{kind}` | `{resolution.rule}` | {resolution.winner} | {said(resolution.explanation)} |"
        for kind, resolution in RESOLUTIONS.items()
    ]
    return CONFLICTS_HEAD + "\n".join(rows) + "\n"


def said(explanation: str) -> str:
    return explanation.replace("{winner}", "*winner*").replace("{losers}", "*losers*").strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
