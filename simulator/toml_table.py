"""A table of a TOML file whose keys are taken one by one, so that mistakes are named with file, key and the fix."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from crdtsync.errors import ConfigError
from simulator.plan import ms_of


class Table:
    """One table of a file: each key is taken once, and what nobody took is a mistake."""

    def __init__(self, file: str, key: str, plain: Any) -> None:
        self.file = file
        self.key = key
        if not isinstance(plain, Mapping):
            raise ConfigError(f"{file}: {key} = {plain!r:.60}: expected a table, as in [{key}]")
        self._plain = dict(plain)
        self._taken: list[str] = []

    def where(self, name: str = "") -> str:
        path = ".".join(part for part in (self.key, name) if part)
        return f"{self.file}: {path}" if path else self.file

    def wrong(self, name: str, expected: str) -> ConfigError:
        return ConfigError(f"{self.where(name)} = {self._plain.get(name)!r:.80}: expected {expected}")

    def take(self, name: str, default: Any = None) -> Any:
        self._taken.append(name)
        return self._plain.get(name, default)

    def has(self, name: str) -> bool:
        return name in self._plain

    def text(self, name: str, default: str, choices: tuple[str, ...] = ()) -> str:
        value = self.take(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, 'a text, as in "eu"')
        if choices and value not in choices:
            close = get_close_matches(value, choices, n=1)
            raise self.wrong(name, f"one of {', '.join(choices)}" + (f" (did you mean {close[0]!r}?)" if close else ""))
        return value

    def number(self, name: str, default: float, low: float = 0, high: float = 1e12) -> float:
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.wrong(name, f"a number from {low:g} to {high:g}")
        return value

    def whole(self, name: str, default: int, low: int = 0, high: int = 10**9) -> int:
        value = self.number(name, default, low, high)
        if not isinstance(value, int):
            raise self.wrong(name, "a whole number")
        return value

    def flag(self, name: str) -> bool:
        value = self.take(name, False)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def duration(self, name: str, default: int = 0) -> int:
        """Milliseconds of a text with a unit."""
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, f'a number and a unit in quotes, as in "{value}s"')
        return ms_of(value, self.where(name))

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; one text stands for a list of one."""
        value = self.take(name, [])
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, 'a list of texts, as in ["eu", "us"]')
        return tuple(value)

    def table(self, name: str) -> Table:
        return Table(self.file, ".".join(part for part in (self.key, name) if part), self.take(name, {}))

    def tables(self, name: str) -> list[Table]:
        value = self.take(name, [])
        if not isinstance(value, list):
            raise self.wrong(name, f"a list of tables: write [[{name}]] with two brackets")
        return [Table(self.file, f"{name}[{place}]", item) for place, item in enumerate(value, 1)]

    def rest(self) -> dict[str, Any]:
        """Everything that was not taken yet."""
        left = {key: value for key, value in self._plain.items() if key not in self._taken}
        self._taken.extend(left)
        return left

    def done(self) -> None:
        """Complain of what nobody took."""
        for key in self._plain:
            if key not in self._taken:
                close = get_close_matches(key, self._taken, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise ConfigError(f"{self.where(key)}: no such key; {hint}There are {', '.join(self._taken)}")
