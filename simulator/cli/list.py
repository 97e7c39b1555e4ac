"""`crdtsync sim list`: what there is."""

from __future__ import annotations

import click

from regions.cli.options import output_option
from regions.cli.output import print_rows


@click.command("list")
@click.option("--faults", is_flag=True, help="The kinds of fault, and what each can be told.")
@click.option("--wants", is_flag=True, help="What an expectation can count.")
@output_option
def list_(*, faults: bool, wants: bool, output: str) -> int:
    """Which scenarios come with crdtsync; or the kinds of fault, or what can be expected."""
    from simulator import scenario_toml
    from simulator.catalogue import CATALOGUE
    from simulator.expect import QUANTITIES

    if faults:
        rows = [
            {
                "kind": kind.name,
                "family": str(kind.family),
                "targets": str(kind.aim),
                "params": {name.removesuffix("_ms"): param.default for name, param in kind.params.items()},
                "text": kind.text,
            }
            for kind in CATALOGUE.values()
        ]
        print_rows(rows, ("kind", "targets", "params", "text"), output)
    elif wants:
        quantities = [
            {"quantity": name, "filters": sorted(filters), "text": text} for name, (text, filters) in QUANTITIES.items()
        ]
        print_rows(quantities, ("quantity", "filters", "text"), output)
    else:
        scenarios = [
            {
                "scenario": name,
                "regions": len(scenario.regions),
                "faults": [fault.kind for fault in scenario.plan.faults],
                "expectations": len(scenario.expectations),
                "text": scenario.text.partition("\n")[0],
            }
            for name in scenario_toml.names()
            for scenario in (scenario_toml.read(name),)
        ]
        print_rows(scenarios, ("scenario", "regions", "text"), output)
    return 0
