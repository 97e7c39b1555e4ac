"""Scenarios from TOML: a file that people write, to a `Scenario`, with errors that say what to write instead.

    name = "an island"
    duration = "2min"
    heal = "60s"
    regions = ["eu", "us", { name = "ap", workers = 2, wall_off = "300ms" }]
    links = { rtt = "80ms", pairs = { "eu<>us" = "90ms" } }
    settings = { lost_after = "3s" }

    [[load]]
    model = "charge"
    arrivals = { shape = "poisson", per_s = 2 }

    [[fault]]
    kind = "isolate"
    at = "10s"
    for = "20s"
    targets = ["eu"]

A duration is text with a unit ("10s", "1.5h") or a number of milliseconds; a key that ends in `_ms` here may be written
without that ending. Anything not known is refused, with what is.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, TypeVar

from crdtsync.app import App
from crdtsync.errors import ConfigError
from simulator.plan import Plan, ms_of
from simulator.scenario import Arrivals, Links, Load, Region, Scenario

BUILT_IN: Final = Path(__file__).parent / "scenarios"
FILE_BYTES_MAX: Final = 4 << 20

T = TypeVar("T")


def names() -> list[str]:
    """The scenarios that come with crdtsync."""
    return sorted(path.stem for path in BUILT_IN.glob("*.toml"))


def load(name: str, *, app: App | None = None) -> Scenario:
    """The scenario in the file `name`, or the built-in one of that name. Raises ConfigError."""
    path = Path(name)
    if not path.suffix and not path.exists():
        path = BUILT_IN / f"{name}.toml"
        if not path.exists():
            raise ConfigError(f"there is no scenario {name!r}; there are {', '.join(names())}, or give a file")
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError(f"{path}: more than {FILE_BYTES_MAX} bytes")
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"scenario {path}: {error}") from error
    plain.setdefault("name", path.stem)
    return scenario_of(plain, app=app, where=path.parent)


def scenario_of(plain: Mapping[str, Any], *, app: App | None = None, where: Path | None = None) -> Scenario:
    """A scenario from what TOML gives. Paths in it are relative to `where`. Raises ConfigError."""
    rest = dict(plain)
    regions = tuple(
        Region(name=region) if isinstance(region, str) else _record("region", Region, region)
        for region in _list("regions", rest.pop("regions", ()))
    )
    links = dict(_table("links", rest.pop("links", {})))
    given = {name: float(ms_of(rtt, f"links.pairs {name}")) for name, rtt in dict(links.pop("pairs", {})).items()}
    if "rtt" in links:
        links["rtt_ms"] = links.pop("rtt")
    settings = {
        key if key.endswith("_max") or not isinstance(value, str) else _as_ms(key): (
            ms_of(value, f"settings.{key}") if isinstance(value, str) else value
        )
        for key, value in _table("settings", rest.pop("settings", {})).items()
    }
    loads = {"loads": _loads(rest.pop("load"), where)} if "load" in rest else {}
    plan = Plan.from_plain(
        {
            "faults": _list("fault", rest.pop("fault", ())),
            **{key: rest.pop(key) for key in ("heal", "healed") if key in rest},
        }
    )
    scenario = _record(
        "scenario",
        Scenario,
        {
            **rest,
            "regions": regions,
            "links": _record("links", Links, {**links, "rtt": given}, where),
            "plan": plan,
            "settings": settings,
            "app": app,
            **loads,
        },
    )
    scenario.check()
    return scenario


def _loads(plain: Any, where: Path | None) -> tuple[Load, ...]:
    loads = []
    for load in _list("load", plain):
        arrivals = _record("arrivals", Arrivals, _table("arrivals", load.get("arrivals", {})), where)
        loads.append(_record("load", Load, {**load, "arrivals": arrivals}))
    return tuple(loads)


def _record(what: str, kind: type[T], plain: Mapping[str, Any], where: Path | None = None) -> T:
    """A dataclass from a table: durations read, lists as tuples, paths found, unknown keys refused."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    made: dict[str, Any] = {}
    for key, value in plain.items():
        if value is None:
            continue
        name = key if key in known else _as_ms(key)
        if name not in known:
            raise ConfigError(f"{what} does not know {key!r}; it knows {', '.join(sorted(known))}")
        if name.endswith("_ms") and isinstance(value, str):
            made[name] = ms_of(value, f"{what}: {key}")
        elif name in ("path", "matrix") and where is not None and value:
            made[name] = str(where / value)
        else:
            made[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**made)
    except TypeError as error:
        raise ConfigError(f"{what}: {error}") from error


def _as_ms(key: str) -> str:
    return f"{key}_ms"


def _list(what: str, value: Any) -> Iterable[Any]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{what} is a list, not {value!r:.100}")
    return value


def _table(what: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} is a table, not {value!r:.100}")
    return value
