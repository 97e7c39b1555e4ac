"""A failure, told on a terminal: what is wrong, how to see it again, what it takes, and what led to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from simulator.report.story import Story
from simulator.trace import SCHEMA, Record

if TYPE_CHECKING:
    from simulator.result import Result, Violation
    from simulator.world import World

VIOLATIONS_SHOWN: Final = 5
SLICE_LINES_MAX: Final = 100
VALUE_CHARS_MAX: Final = 60
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
    causes = [line_of(records[cause]) for cause in violation.causes[:8] if 0 <= cause < len(records)]
    return [
        f"VIOLATION {violation.invariant} at {violation.at_s:.3f} s: {violation.text}",
        *(f"  because {cause}" for cause in causes),
    ]


def causal_slice(world: World, result: Result) -> list[str]:
    """The records that led to the first violation, backwards along their causes; the newest are kept if it is long."""
    records = world.trace.records
    violation = result.violations[0] if result.violations else None
    at_us = world.kernel.now_us if violation is None else round(violation.at_s * 1_000_000)
    roots = [cause for cause in violation.causes if 0 <= cause < len(records)] if violation is not None else []
    if not roots and violation is not None and violation.task:
        task = violation.task
        about = [r.seq for r in records if r.at_us <= at_us and (r.id == task or task in r.data)]
        roots = about[-10:]
    if not roots:  # nothing named: what went wrong with the world, and the last things before it
        telling = ("fault.start", "fault.end", "node.crash", "node.start", "node.failed", "disk.lost", "run.heal")
        kinds = (*telling, "task.end", "client.answer", "notify")
        return [line_of(r) for r in records if r.kind in kinds and r.at_us <= at_us][-SLICE_LINES_MAX // 2 :]
    seen: set[int] = set()
    waiting = sorted(roots)
    while waiting and len(seen) < SLICE_LINES_MAX:
        seq = waiting.pop()  # the newest first: what is nearest to the failure says most
        if seq not in seen:
            seen.add(seq)
            waiting = sorted({*waiting, *(cause for cause in records[seq].causes if cause not in seen)})
    faults = [r.seq for r in records if r.kind in ("fault.start", "fault.end") and r.at_us <= at_us]
    chosen = sorted(seen.union(faults[-20:]))[-SLICE_LINES_MAX:]
    return [line_of(records[seq]) for seq in chosen]


def line_of(record: Record) -> str:
    """One record on one line."""
    said: Mapping[str, Any] = dict(zip(SCHEMA[record.kind], record.data, strict=True))
    told = " ".join(f"{name}={_short(value)}" for name, value in said.items() if value not in ("", (), None))
    causes = f" <- {','.join(map(str, record.causes[:4]))}" if record.causes else ""
    return (
        f"{record.at_s:>10.3f} s  #{record.seq:<6} {record.node or '-':<6} {record.kind:<14} {record.id} {told}{causes}"
    )


def _short(value: Any) -> str:
    plain = value.hex() if isinstance(value, bytes) else str(value)
    return plain if len(plain) <= VALUE_CHARS_MAX else plain[: VALUE_CHARS_MAX - 1] + "…"


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
