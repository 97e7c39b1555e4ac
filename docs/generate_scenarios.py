"""Write the tables of docs/reference/scenarios.md from what the simulator knows. `--check` only says whether they are current."""

import sys
from pathlib import Path

from simulator import scenario_toml
from simulator.catalogue import CATALOGUE
from simulator.expect import QUANTITIES
from simulator.plan import text_of_ms

PAGE = Path(__file__).parent / "reference" / "scenarios.md"


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


def filled(page: str) -> str:
    for name, table in (("faults", faults()), ("quantities", quantities()), ("stories", stories())):
        begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}{table}{end}{after}"
    return page


if __name__ == "__main__":
    page = PAGE.read_text("utf-8")
    if "--check" in sys.argv:
        sys.exit(0 if page == filled(page) else f"{PAGE} is not current: run python docs/generate_scenarios.py")
    PAGE.write_text(filled(page), "utf-8")
