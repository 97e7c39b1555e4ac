"""Scenarios as TOML: what a user writes, read into a `Scenario`, and back.

    scenario = read("my.toml")                  # a file, or the name of one that ships: "split_brain"
    Path("copy.toml").write_text(to_toml(scenario))    # simulator.scenario_text

`docs/reference/scenarios.md` has every key. A mistake is answered by the file, the key, and what to write instead.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from crdtsync.app import App
from crdtsync.commands import TaskSpec
from crdtsync.errors import ConfigError
from crdtsync.limit import Limit
from simulator import expect
from simulator.catalogue import CATALOGUE
from simulator.plan import Fault, Plan, ms_of
from simulator.scenario import ARRIVAL_SHAPES, DURATION_MS, SETTABLE, Arrivals, Links, Load, Region, Scenario
from simulator.toml_table import Table
from simulator.workload import MODELS

FOLDER: Final = Path(__file__).parent / "scenarios"
FILE_BYTES_MAX: Final = 4 * 2**20  # ten thousand faults, and room

#: "shop.py:app" -> the app; `regions.execution.registry.load_app` is one.
FindApp = Callable[[str], App]


def option_name(field: str) -> str:
    """What an option of a load is called in TOML, where a duration is written with its unit."""
    return field.replace("_in_ms", "").replace("_ms", "")


#: Name in TOML -> the option of a load.
_OPTIONS: Final = {
    option_name(field): field
    for field in (*TaskSpec.__struct_fields__, "deadline_in_ms")
    if field not in ("name", "payload", "id", "after", "after_settled", "linked", "not_before_ms", "deadline_ms")
}


def names() -> list[str]:
    """The scenarios that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find(name: str) -> Path:
    """The file of a scenario, given as a path or by the name of one that ships. Raises ConfigError."""
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        if path.is_file():
            return path
        raise ConfigError(f"scenario {name}: there is no such file")
    if name in names():
        return FOLDER / f"{name}.toml"
    close = get_close_matches(name, names(), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(f"scenario {name!r}: {hint}there are {', '.join(names())}; or give a file that ends in .toml")


def read(name: str | Path, *, app: App | None = None, find_app: FindApp | None = None) -> Scenario:
    """Read a scenario from a file, or one that ships by its name.

    Args:
        name: As `find` takes it.
        app: Instead of the one that the file names.
        find_app: How an app is loaded that the file names as "FILE.py:app".

    Raises:
        ConfigError: With the file, the key, and what to write instead.
    """
    path = find(str(name))
    if path.stat().st_size > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: over {FILE_BYTES_MAX} bytes, which is no scenario")
    return parse(
        path.read_text("utf-8"), where=str(path), folder=path.parent, name=path.stem, app=app, find_app=find_app
    )


def app_of(name: str) -> str:
    """The app that a scenario names, with its file's whole path; "" if it names none."""
    path = find(name)
    told = tomllib.loads(path.read_text("utf-8")).get("app", "")
    file, colon, attribute = str(told).rpartition(":")
    if not colon:
        file, attribute = str(told), "app"
    return f"{(path.parent / file).resolve()}:{attribute}" if file.endswith(".py") else str(told)


def parse(
    text: str,
    *,
    where: str = "scenario",
    folder: Path = Path(),
    name: str = "unnamed",
    app: App | None = None,
    find_app: FindApp | None = None,
) -> Scenario:
    """Read a scenario from TOML.

    Args:
        text: The file's content.
        where: What errors call it.
        folder: What paths in it are relative to.
        name: Its name unless it says one.
        app: Instead of the one that it names.
        find_app: How an app is loaded that it names.
    """
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not TOML: {error}") from None
    top = Table(where, "", plain)
    regions = _regions(top)
    app = _app(top, folder, app, find_app)
    scenario = Scenario(
        name=top.text("name", name),
        regions=regions,
        text=top.text("story", "").strip(),
        links=_links(top.table("links"), folder),
        loads=tuple(_load(load, folder, app is not None) for load in top.tables("load")) or (Load(),),
        plan=_plan(top),
        expectations=tuple(_want(want) for want in top.tables("expect")),
        settings=_settings(top.table("settings")),
        disk_ms=_disk(top.table("disk")),
        duration_ms=top.duration("duration", DURATION_MS),
        app=app,
        drawn=top.table("drawn").rest(),
        limits=tuple(_limit(limit) for limit in top.tables("limit")),
    )
    top.done()
    try:
        scenario.check()
        for text_ in scenario.expectations:
            expect.check(text_, scenario.names)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return scenario


def _regions(top: Table) -> tuple[Region, ...]:
    plain = top.take("regions")
    if isinstance(plain, Mapping) and plain:
        return tuple(_region(Table(top.file, f"regions.{name}", told), name) for name, told in plain.items())
    if not isinstance(plain, list) or not all(isinstance(name, str) for name in plain):
        raise top.wrong("regions", 'a list of names, as in ["eu", "us", "ap"], or a table [regions.eu] for each')
    return tuple(Region(name) for name in plain)


def _region(table: Table, name: str) -> Region:
    place = table.take("place")
    if place is not None and not (
        isinstance(place, list) and len(place) == 2 and all(isinstance(degree, int | float) for degree in place)
    ):
        raise table.wrong("place", "latitude and longitude in degrees, as in [50.1, 8.7]")
    region = Region(
        name,
        None if place is None else (float(place[0]), float(place[1])),
        table.duration("clock_off"),
        round(table.number("drift_ppm", 0, -100_000, 100_000)),
        table.whole("workers", 1, 0, 100),
        table.whole("credits", 10, 1, 10_000),
        table.flag("joins"),
    )
    table.done()
    return region


def _links(table: Table, folder: Path) -> Links:
    plain = Links()
    pairs = table.table("pairs")
    csv = table.text("csv", "")
    links = Links(
        rtt={pair: pairs.duration(pair) for pair in pairs.rest()},
        matrix=_file(table, "csv", csv, folder),
        rtt_ms=table.duration("rtt", round(plain.rtt_ms)),
        jitter=table.number("jitter", plain.jitter, 0, 10),
        tail=table.number("tail", plain.tail, 0, 1),
        per_s_bytes=table.whole("bytes_per_s", 0),
    )
    table.done()
    return links


def _file(table: Table, name: str, told: str, folder: Path) -> str:
    if not told:
        return ""
    path = folder / told
    if not path.is_file():
        raise table.wrong(name, f"a file; there is no {path}")
    return str(path)


def _load(table: Table, folder: Path, own_app: bool) -> Load:
    task = table.text("task", "")
    if task and not own_app:
        raise table.wrong("task", 'a scenario with app = "FILE.py:app"; without one, write model = "charge"')
    model = f"task:{task}" if task else table.text("model", "noop", MODELS)
    load = Load(
        model=model,
        arrivals=_arrivals(table.table("arrivals"), folder),
        regions=table.texts("regions"),
        args=tuple(table.take("args", [])),
        kwargs=table.table("kwargs").rest(),
        options=_options(table.table("options")),
    )
    table.done()
    return load


def _limit(table: Table) -> Limit:
    try:
        return Limit(**table.rest())
    except TypeError:
        raise ConfigError(f"{table.where()}: a limit has queue, task or key, concurrency, rate, per, scope") from None


def _arrivals(table: Table, folder: Path) -> Arrivals:
    plain = Arrivals()
    csv = table.text("csv", "")
    arrivals = Arrivals(
        shape=table.text("shape", "trace" if csv else plain.shape, ARRIVAL_SHAPES),
        per_s=table.number("per_s", plain.per_s, 0, 100_000),
        start_ms=table.duration("start", plain.start_ms),
        until_ms=table.duration("until"),
        burst=table.whole("burst", plain.burst, 1, 100_000),
        count=table.whole("count", 0),
        path=_file(table, "csv", csv, folder),
    )
    if arrivals.shape == "trace" and not csv:
        raise table.wrong("csv", "a CSV file whose first column is seconds, since the shape is trace")
    table.done()
    return arrivals


def _options(table: Table) -> dict[str, Any]:
    """Of `TaskSpec`: what is not a duration is passed on as it is."""
    found: dict[str, Any] = {}
    for key, value in table.rest().items():
        name = _OPTIONS.get(key)
        if name is None:
            raise ConfigError(f"{table.where(key)}: no such option; there are {', '.join(sorted(_OPTIONS))}")
        found[name] = ms_of(value, table.where(key)) if "_ms" in name else value
    return found


def _plan(top: Table) -> Plan:
    faults = [_fault(table) for table in top.tables("fault")]
    plan = Plan(tuple(faults), top.duration("heal") if top.has("heal") else None, top.texts("healed"))
    return plan.with_faults(faults) if faults else plan


def _fault(table: Table) -> Fault:
    kind = table.text("kind", "")
    if kind not in CATALOGUE:
        close = get_close_matches(kind, CATALOGUE, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise table.wrong("kind", f"a kind of fault{hint}; `crdtsync sim list --faults` has them all")
    if not table.has("at"):
        raise ConfigError(f'{table.where("at")} is missing: say when it begins, as in at = "10s"')
    start_ms, duration_ms = table.duration("at"), table.duration("for")
    targets = table.texts("targets") or ("*",)
    params = table.rest()
    try:
        plain = {"kind": kind, "at": start_ms, "for": duration_ms, "targets": targets, **_milliseconds(kind, params)}
        return Fault.from_plain(plain)
    except ConfigError as error:
        raise ConfigError(f"{table.where()}: {error}") from None


def _milliseconds(kind: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """`up_to = "200ms"` is `up_to_ms = 200`."""
    known = CATALOGUE[kind].params
    found = {}
    for name, value in params.items():
        timed = f"{name}_ms"
        found[timed if timed in known and name not in known else name] = value
    return found


def _want(table: Table) -> str:
    want, why = table.text("want", ""), table.text("why", "").replace("#", "")
    table.done()
    try:
        expect.parse(want)
    except ConfigError as error:
        raise ConfigError(f"{table.where('want')}: {error}") from None
    return f"{want}  # {why}" if why else want


def _settings(table: Table) -> dict[str, Any]:
    """Of `crdtsync.settings.Settings`: a time loses its `_ms` in TOML and is written with a unit."""
    found: dict[str, Any] = {}
    for key, value in table.rest().items():
        name = f"{key}_ms" if f"{key}_ms" in SETTABLE else key
        if name not in SETTABLE:
            known = sorted(setting.removesuffix("_ms") for setting in SETTABLE)
            close = get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(f"{table.where(key)}: no such setting; {hint}There are {', '.join(known)}")
        found[name] = ms_of(value, table.where(key)) if name.endswith("_ms") else value
    return found


def _disk(table: Table) -> tuple[float, float]:
    fsync = table.texts("fsync") or ("1ms", "4ms")
    if len(fsync) > 2:
        raise table.wrong("fsync", 'the shortest and the longest, as in ["1ms", "4ms"]')
    table.done()
    return float(ms_of(fsync[0], table.where("fsync"))), float(ms_of(fsync[-1], table.where("fsync")))


def _app(top: Table, folder: Path, given: App | None, find_app: FindApp | None) -> App | None:
    """The app of a scenario: a file relative to the scenario's, or a module."""
    told = top.text("app", "")
    if given is not None or not told:
        return given
    if find_app is None:
        raise ConfigError(f"{top.where('app')} = {told!r}: nobody here loads apps; pass app=..., or find_app=...")
    file, colon, name = told.rpartition(":")
    if not colon:
        file, name = told, "app"
    try:
        return find_app(f"{folder / file}:{name}" if file.endswith(".py") else told)
    except ConfigError as error:
        raise ConfigError(f"{top.where('app')}: {error}") from None
