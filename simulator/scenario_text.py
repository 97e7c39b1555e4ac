"""A `Scenario` as TOML: what `scenario_toml` reads back as the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from typing import Any

from crdtsync.limit import Limit
from simulator.plan import text_of_ms
from simulator.scenario import Arrivals, Links, Load, Region, Scenario
from simulator.scenario_toml import option_name


def to_toml(scenario: Scenario, *, app: str = "", comment: str = "") -> str:
    """The scenario as TOML that `parse` reads back as the same.

    Args:
        scenario: Written by hand, drawn, or shrunk.
        app: What to write for `app`, if the scenario has one of its own.
        comment: What stands above it, a line each.
    """
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    lines.append(f"name = {_toml(scenario.name)}")
    if scenario.text:
        lines.append(f"story = {_toml(scenario.text)}")
    if app:
        lines.append(f"app = {_toml(app)}")
    lines.append(f"duration = {_toml(text_of_ms(scenario.duration_ms))}")
    if scenario.plan.heal_ms is not None:
        lines.append(f"heal = {_toml(text_of_ms(scenario.plan.heal_ms))}")
    if scenario.plan.healed:
        lines.append(f"healed = {_toml(list(scenario.plan.healed))}")
    plain = all(region == Region(region.name) for region in scenario.regions)
    if plain:
        lines.append(f"regions = {_toml(list(scenario.names))}")
    if scenario.disk_ms != (1.0, 4.0):
        lines += ["", "[disk]", f"fsync = {_toml([f'{ms:g}ms' for ms in scenario.disk_ms])}"]
    if not plain:
        for region in scenario.regions:
            lines += ["", f"[regions.{region.name}]", *_pairs(_region_plain(region))]
    lines += _section("links", _links_plain(scenario.links))
    settings = {
        key.removesuffix("_ms"): text_of_ms(value) if key.endswith("_ms") else value
        for key, value in scenario.settings.items()
    }
    lines += _section("settings", settings)
    for limit in scenario.limits:
        lines += ["", "[[limit]]", *_pairs(_limit_plain(limit))]
    for load in scenario.loads:
        lines += ["", "[[load]]", *_pairs(_load_plain(load))]
    for fault in scenario.plan.faults:
        lines += ["", "[[fault]]", *_pairs(fault.to_plain())]
    for text in scenario.expectations:
        want, _, why = text.partition("#")
        lines += ["", "[[expect]]", f"want = {_toml(want.strip())}"]
        if why:
            lines.append(f"why = {_toml(why.strip())}")
    return "\n".join(lines) + "\n"


def _section(name: str, plain: Mapping[str, Any]) -> list[str]:
    return ["", f"[{name}]", *_pairs(plain)] if plain else []


def _pairs(plain: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_toml(value)}" for key, value in plain.items()]


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str() if "\n" in value and "'''" not in value:
            return f"'''\n{value}\n'''"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case int() | float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case Mapping():
            return f"{{ {', '.join(f'{_key(key)} = {_toml(item)}' for key, item in value.items())} }}"
    raise TypeError(f"{value!r} has no place in TOML")


def _differing(record: Any, plain: Any) -> dict[str, Any]:
    """The fields that are not what they are unless given."""
    return {f.name: value for f in fields(record) if (value := getattr(record, f.name)) != getattr(plain, f.name)}


def _region_plain(region: Region) -> dict[str, Any]:
    told = _differing(region, Region(region.name))
    if "wall_off_ms" in told:
        told["clock_off"] = text_of_ms(told.pop("wall_off_ms"))
    return told


def _links_plain(links: Links) -> dict[str, Any]:
    told = _differing(links, Links())
    renamed = {"matrix": "csv", "per_s_bytes": "bytes_per_s"}
    plain: dict[str, Any] = {}
    for key, value in told.items():
        if key == "rtt":
            plain["pairs"] = {pair: f"{rtt_ms:g}ms" for pair, rtt_ms in value.items()}
        elif key == "rtt_ms":
            plain["rtt"] = f"{value:g}ms"
        else:
            plain[renamed.get(key, key)] = value
    return plain


def _limit_plain(limit: Limit) -> dict[str, Any]:
    told = {field.name: getattr(limit, field.name) for field in fields(limit)}
    if isinstance(limit.per, timedelta):
        told["per"] = limit.per.total_seconds()
    return {key: value for key, value in told.items() if value is not None}


def _load_plain(load: Load) -> dict[str, Any]:
    own = load.model.startswith("task:")
    plain: dict[str, Any] = {"task" if own else "model": load.model.removeprefix("task:")}
    for key, value in _differing(load, Load(load.model)).items():
        if key == "arrivals":
            plain[key] = _arrivals_plain(value)
        elif key == "options":
            plain[key] = {
                option_name(name): text_of_ms(option) if "_ms" in name else option for name, option in value.items()
            }
        else:
            plain[key] = list(value) if isinstance(value, tuple) else value
    return plain


def _arrivals_plain(arrivals: Arrivals) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in _differing(arrivals, Arrivals()).items():
        if key in ("start_ms", "until_ms"):
            plain[key.removesuffix("_ms")] = text_of_ms(value)
        else:
            plain["csv" if key == "path" else key] = value
    return plain
