"""Write the tables of reference pages about the simulator from what it knows. `--check` only says whether they are current."""

import sys
from pathlib import Path

from crdtsync.events import KINDS
from simulator import scenario_toml
from simulator.catalogue import CATALOGUE
from simulator.expect import QUANTITIES
from simulator.plan import text_of_ms

REFERENCE = Path(__file__).parent / "reference"


def faults() -> str:
    lines = ["| kind | targets | can be told (unless told) | what it does |", "|---|---|---|---|"]
    for kind in CATALOGUE.values():
        params = []
        for name, param in kind.params.items():
            shown = text_of_ms(int(param.default)) if name.endswith("_ms") else str(param.default)
            bounds = (
                ", ".join(param.choices) or f"{param.low:g} to {param.high:g}{' ms' if name.endswith('_ms') else ''}"
            )
            params.append(f"`{name.removesuffix('_ms')}` ({shown}; {bounds})")
        when = " Has no `for`." if kind.instant else ""
        lines.append(f"| `{kind.name}` | {kind.aim} | {'<br>'.join(params) or '-'} | {kind.text}{when} |")
    return "\n".join(lines)


def quantities() -> str:
    lines = ["| quantity | filters | what is counted |", "|---|---|---|"]
    for name, (text, filters) in QUANTITIES.items():
        lines.append(f"| `{name}` | {', '.join(f'`{f}`' for f in sorted(filters)) or '-'} | {text} |")
    return "\n".join(lines)


def stories() -> str:
    lines = ["| scenario | story |", "|---|---|"]
    for name in scenario_toml.names():
        link = f"[`{name}`](../../simulator/scenarios/{name}.toml)"
        lines.append(f"| {link} | {scenario_toml.read(name).text} |")
    return "\n".join(lines)


def events() -> str:
    rows = [
        f"| `{record.__name__}` | {' '.join(f'`{name}`' for name in record._fields)} |" for record in KINDS.values()
    ]
    return "\n".join(["| event | fields |", "|---|---|", *rows])


#: Page -> its tables.
PAGES = {
    "scenarios.md": {"faults": faults, "quantities": quantities, "stories": stories},
    "trace.md": {"events": events},
}


def filled(page: str, name: str) -> str:
    """The text of the page of that name, with its tables as they should be."""
    for mark, table in PAGES[name].items():
        begin, end = f"<!-- {mark} -->\n", f"\n<!-- /{mark} -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}{table()}{end}{after}"
    return page


if __name__ == "__main__":
    for name in PAGES:
        path = REFERENCE / name
        page = path.read_text("utf-8")
        if "--check" not in sys.argv:
            path.write_text(filled(page, name), "utf-8")
        elif page != filled(page, name):
            sys.exit(f"{path} is not current: run python docs/generate_scenarios.py")
