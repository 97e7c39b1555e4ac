"""A failure, told on a terminal: what is wrong, how to see it again, what it takes, and what led to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from simulator.report.causes import causal_slice, line_of
from simulator.report.story import Story

if TYPE_CHECKING:
    from simulator.result import Result, Violation
    from simulator.world import World

VIOLATIONS_SHOWN: Final = 5
LANE_COLUMNS: Final = 96


def text(world: World, result: Result, *, command: str = "") -> str:
    """What failed, in the order in which a person asks. The world's records were kept."""
    lines: list[str] = []
    for violation in result.violations[:VIOLATIONS_SHOWN]:
        lines += _violation(world, violation)
    if len(result.violations) > VIOLATIONS_SHOWN:
        lines.append(f"and {len(result.violations) - VIOLATIONS_SHOWN} violations more")
    lines += [f"UNMET {unmet}" for unmet in result.unmet]
    if not lines:
        lines.append(f"{result.scenario}, seed {result.seed}: all invariants held, all expectations were met")
    if command:
        lines += ["", "Reproduce", f"  {command}"]
    lines += ["", "Plan"]
    lines += [f"  {fault}" for fault in world.scenario.plan.faults] or ["  no faults"]
    lines.append(f"  healed at {result.healed_at_s:g} s")
    if command and len(world.scenario.plan.faults) > 1:
        shrink = command.replace("sim run ", "sim shrink --scenario ")
        lines.append(f"  smaller: {shrink} --out min.toml")
    if world.scenario.drawn:
        lines += ["", "Drawn"]
        lines += [f"  {name} = {value}" for name, value in world.scenario.drawn.items()]
    if not result.ok:
        lines += ["", "What led to it"]
        lines += [f"  {line}" for line in causal_slice(world, result)]
    lines += ["", "Lanes"]
    lines += [f"  {line}" for line in lanes(Story.of(world))]
    return "\n".join(lines)


def _violation(world: World, violation: Violation) -> list[str]:
    records = world.trace.records
    tasks = (violation.task,) if violation.task else ()
    causes = [line_of(records[cause], tasks) for cause in violation.causes[:8] if 0 <= cause < len(records)]
    return [
        f"VIOLATION {violation.invariant} at {violation.at_s:.3f} s: {violation.text}",
        *(f"  because {cause}" for cause in causes),
    ]


def lanes(story: Story) -> list[str]:
    """One line per region over time: `x` down, `#` handlers running under a fault, `=` running, `-` idle, `~` a fault."""
    columns = LANE_COLUMNS
    width = max(len(region) for region in story.regions)

    def column(at_us: int) -> int:
        return min(columns - 1, at_us * columns // story.end_us)

    lines = []
    for region in story.regions:
        faulty, busy, down = [False] * columns, [False] * columns, [False] * columns
        spans = [(band.start_us, band.end_us, faulty) for band in story.bands if region in band.regions]
        spans += [(bar.start_us, bar.end_us, busy) for bar in story.bars if bar.region == region]
        spans += [(gap.start_us, gap.end_us, down) for gap in story.downs if gap.region == region]
        for start_us, end_us, cells in spans:
            for place in range(column(start_us), column(end_us) + 1):
                cells[place] = True
        marks = zip(down, busy, faulty, strict=True)
        lane = "".join("x" if d else "#" if b and f else "=" if b else "~" if f else "-" for d, b, f in marks)
        lines.append(f"{region:<{width}} {lane}")
    ruler = [" "] * columns
    for at_us, mark in ((story.healed_us, "H"), (story.converged_us, "C")):
        if at_us is not None and at_us <= story.end_us:
            ruler[column(at_us)] = mark
    lines.append(f"{'':<{width}} {''.join(ruler)}")
    lines.append(
        f"{'':<{width}} 0 to {story.end_us / 1_000_000:g} s; x down, # running under a fault, = running, ~ a fault, - idle; "
        "H healed, C converged"
    )
    return lines
