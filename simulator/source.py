"""Where a scenario comes from: a file, a name that ships, or the swarm; in a form that another process understands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from simulator import scenario_toml, swarm
from simulator.plan import text_of_ms
from simulator.result import Checker, Mutant, Result
from simulator.scenario import Scenario
from simulator.scenario_toml import FindApp
from simulator.world import World

SWARM: Final = "swarm"


@dataclass(frozen=True, slots=True)
class Source:
    """A scenario per seed.

    Attributes:
        name: A file, the name of a scenario that ships, or "swarm": then each seed draws its own.
        app: "FILE.py:app", instead of the one that the scenario names.
        find_app: How apps are loaded; a function that can be sent to another process.
        duration_ms: Instead of the scenario's own; 0 for that.
        kernel: "trio" for an app whose handlers use it.
    """

    name: str = SWARM
    app: str = ""
    find_app: FindApp | None = None
    duration_ms: int = 0
    kernel: str = "heap"

    def scenario(self, seed: int) -> Scenario:
        """What this seed plays. Raises ConfigError."""
        app = None if not self.app or self.find_app is None else self.find_app(self.app)
        if self.name == SWARM:
            return replace(swarm.draw(seed, duration_ms=self.duration_ms or swarm.DURATION_MS), app=app)
        scenario = scenario_toml.read(self.name, app=app, find_app=self.find_app)
        return replace(scenario, duration_ms=self.duration_ms) if self.duration_ms else scenario

    def command(self, seed: int) -> str:
        """The one line that plays it again."""
        app = f" --app {self.app}" if self.app else ""
        time = f" --time {text_of_ms(self.duration_ms)}" if self.duration_ms else ""
        kernel = f" --kernel {self.kernel}" if self.kernel != "heap" else ""
        return f"crdtsync sim run {self.name} --seed {seed}{app}{time}{kernel}"

    @property
    def app_place(self) -> str:
        """The app that a scenario written elsewhere has to name, for `scenario_text.to_toml`; "" if there is none."""
        if self.app:
            file, colon, attribute = self.app.rpartition(":")
            return f"{Path(file).resolve()}{colon}{attribute}" if file.endswith(".py") else self.app
        if self.name == SWARM:
            return ""
        return scenario_toml.app_of(self.name)


def play(
    scenario: Scenario,
    seed: int,
    *,
    kernel: str = "heap",
    checkers: Sequence[Checker] = (),
    mutants: Sequence[Mutant] = (),
) -> Result:
    """Play it once, judged by `checkers`, and keep no more than the result."""
    return World(scenario, seed, kernel=kernel, checkers=checkers, mutants=mutants, keep=False).run()
