"""The fault plan: what goes wrong, when, for how long, and where; plain data.

    plan = Plan(
        faults=(Fault("isolate", start_ms=10_000, duration_ms=20_000, targets=("eu",)),),
        heal_ms=60_000,
    )

A plan is written by hand in a scenario, drawn from a seed (`swarm`), or found by shrinking; it is the same thing
everywhere, and `Plan.from_plain(plan.to_plain()) == plan`, so it survives TOML and JSON. Two phases: until `heal_ms`
faults come and go, and safety is demanded; then whatever still lasts ends where `healed` says, and liveness is too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from crdtsync.errors import ConfigError
from simulator.catalogue import CATALOGUE, Aim, FaultKind, Param

ParamValue: TypeAlias = float | int | str

FAULTS_MAX: Final = 10_000  # of one plan: a list for people, and a loop for `shrink`
DURATION_MS_MAX: Final = 366 * 86_400_000

_UNITS: Final = {"ms": 1, "s": 1_000, "min": 60_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "us": 0.001}
_DURATION: Final = re.compile(r"\s*(-?[0-9]+(?:\.[0-9]+)?)\s*(us|ms|s|min|m|h|d)\s*")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: A name of `catalogue.CATALOGUE`.
        start_ms: Virtual time, from the start of the run.
        duration_ms: Until it ends by itself; 0 for a kind that happens at once, and, of a `restarts` kind,
            for a restart at once.
        targets: See `catalogue.Aim`.
        params: What the kind can be told; the rest has its defaults.
    """

    kind: str
    start_ms: int
    duration_ms: int = 0
    targets: tuple[str, ...] = ("*",)
    params: Mapping[str, ParamValue] = field(default_factory=dict)

    @property
    def end_ms(self) -> int:
        return self.start_ms + self.duration_ms

    @property
    def spec(self) -> FaultKind:
        """Its entry in the catalogue."""
        return CATALOGUE[self.kind]

    def __getitem__(self, name: str) -> ParamValue:
        """A param's value, given or default."""
        given = self.params.get(name)
        return self.spec.params[name].default if given is None else given

    def number(self, name: str) -> float:
        """A numeric param."""
        value = self[name]
        assert not isinstance(value, str), name
        return float(value)

    def __str__(self) -> str:
        told = "".join(f" {name}={value}" for name, value in sorted(self.params.items()))
        last = f" for {text_of_ms(self.duration_ms)}" if self.duration_ms else ""
        return f"{self.kind} {','.join(self.targets)} at {text_of_ms(self.start_ms)}{last}{told}"

    def check(self, regions: Iterable[str]) -> None:
        """See that it makes sense for these regions. Raises ConfigError, which says what to write instead."""
        kind = CATALOGUE.get(self.kind)
        if kind is None:
            raise ConfigError(f"fault {self.kind!r} is none that we know; there are {', '.join(CATALOGUE)}")
        where = f"fault {self.kind!r} at {text_of_ms(self.start_ms)}"
        if not 0 <= self.start_ms <= DURATION_MS_MAX or not 0 <= self.duration_ms <= DURATION_MS_MAX:
            raise ConfigError(f"{where}: starts and lasts from 0 to {DURATION_MS_MAX} ms")
        if kind.instant and self.duration_ms:
            raise ConfigError(f"{where} happens at once: leave its duration out")
        if not self.targets:
            raise ConfigError(f"{where}: name at least one target")
        known = frozenset(regions)
        for target in self.targets:
            _check_target(where, kind, target, known)
        for name, value in self.params.items():
            param = kind.params.get(name)
            if param is None:
                told = ", ".join(kind.params) or "nothing"
                raise ConfigError(f"{where} does not know {name!r}; it can be told {told}")
            _check_param(f"{where}: {name}={value!r}", param, value)

    def to_plain(self) -> dict[str, Any]:
        """As TOML and JSON have it; durations as text, so that people can read and change them."""
        plain: dict[str, Any] = {"kind": self.kind, "at": text_of_ms(self.start_ms)}
        if self.duration_ms:
            plain["for"] = text_of_ms(self.duration_ms)
        plain["targets"] = list(self.targets)
        return {**plain, **dict(sorted(self.params.items()))}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Fault:
        """Inverse of `to_plain`. Durations may be text ("10s") or milliseconds. Raises ConfigError."""
        rest = dict(plain)
        try:
            kind, start = rest.pop("kind"), rest.pop("at")
        except KeyError as error:
            raise ConfigError(f"a fault lacks {error.args[0]!r}: {dict(plain)!r:.200}") from None
        targets = rest.pop("targets", ("*",))
        if isinstance(targets, str):
            targets = (targets,)
        duration = ms_of(rest.pop("for", 0), f"fault {kind!r}: for")
        params: dict[str, ParamValue] = {}
        for name, value in rest.items():
            as_text = isinstance(value, str) and name.endswith("_ms")
            params[name] = ms_of(value, f"fault {kind!r}: {name}") if as_text else value
        return cls(str(kind), ms_of(start, f"fault {kind!r}: at"), duration, tuple(map(str, targets)), params)


@dataclass(frozen=True, slots=True)
class Plan:
    """All faults of a run, in the order of their start, and when they end at the latest.

    Attributes:
        heal_ms: When whatever still lasts ends. None: when the last fault ends by itself.
        healed: The regions that are healed then; all of them if empty. Links between two of them work, their
            processes run; what only concerns others goes on.
    """

    faults: tuple[Fault, ...] = ()
    heal_ms: int | None = None
    healed: tuple[str, ...] = ()

    @property
    def healed_ms(self) -> int:
        """When the phase of liveness begins."""
        last = max((fault.end_ms for fault in self.faults), default=0)
        return last if self.heal_ms is None else self.heal_ms

    def check(self, regions: Iterable[str]) -> None:
        """See that it makes sense for these regions. Raises ConfigError."""
        names = tuple(regions)
        if len(self.faults) > FAULTS_MAX:
            raise ConfigError(f"{len(self.faults)} faults, the limit of a plan is {FAULTS_MAX}")
        for fault in self.faults:
            fault.check(names)
        for region in self.healed:
            if region not in names:
                raise ConfigError(f"healed names {region!r}, which is no region; there are {', '.join(names)}")

    def with_faults(self, faults: Iterable[Fault]) -> Plan:
        """The same plan with other faults, sorted by start. The moment of healing stays where it was."""
        ordered = tuple(sorted(faults, key=lambda fault: (fault.start_ms, fault.kind, fault.targets)))
        return replace(self, faults=ordered, heal_ms=self.healed_ms)

    def to_plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"faults": [fault.to_plain() for fault in self.faults]}
        if self.heal_ms is not None:
            plain["heal"] = text_of_ms(self.heal_ms)
        if self.healed:
            plain["healed"] = list(self.healed)
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Plan:
        """Inverse of `to_plain`. Raises ConfigError."""
        heal = plain.get("heal")
        return cls(
            tuple(Fault.from_plain(fault) for fault in plain.get("faults", ())),
            None if heal is None else ms_of(heal, "heal"),
            tuple(map(str, plain.get("healed", ()))),
        )


def ms_of(value: Any, what: str = "duration") -> int:
    """Milliseconds of "10s", "1.5h", "-20ms", or of a number, which is milliseconds already. Raises ConfigError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return round(value)
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(f"{what}={value!r}: write a number and a unit, as in 500ms, 10s, 2min, 1.5h, 3d")
    return round(float(match[1]) * _UNITS[match[2]])


def text_of_ms(duration_ms: int) -> str:
    """The shortest text that `ms_of` reads as this duration."""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)):
        if duration_ms and duration_ms % int(size) == 0:
            return f"{duration_ms // int(size)}{unit}"
    if abs(duration_ms) > 10_000 and duration_ms % 100 == 0:
        return f"{duration_ms / 1_000:g}s"
    return f"{duration_ms}ms"


def split_link(target: str) -> tuple[str, str, bool] | None:
    """The two regions of "eu>us" or "eu<>us", and whether both directions are meant; None if it is no link."""
    one, both, other = target.partition("<>")
    if both:
        return one, other, True
    one, single, other = target.partition(">")
    return (one, other, False) if single else None


def _check_target(where: str, kind: FaultKind, target: str, regions: frozenset[str]) -> None:
    if target == "*":
        return
    named: tuple[str, ...] = (target,)
    if kind.aim is Aim.LINKS:
        link = split_link(target)
        if link is not None:
            named = link[:2]
            if link[0] == link[1]:
                raise ConfigError(f"{where}: {target!r} is no link: a region has none to itself")
    elif kind.aim is Aim.WORKERS:
        named = (target.partition("/")[0],)
    for region in named:
        if region not in regions:
            raise ConfigError(f"{where}: {target!r} names no region of {', '.join(sorted(regions))}")


def _check_param(where: str, param: Param, value: ParamValue) -> None:
    if param.choices:
        if value not in param.choices:
            raise ConfigError(f"{where}: expected one of {', '.join(map(repr, param.choices))}")
    elif isinstance(value, str | bool) or not param.low <= value <= param.high:
        raise ConfigError(f"{where}: expected a number from {param.low:g} to {param.high:g}")
