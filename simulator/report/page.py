"""One page about one run: everything is in the file, nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from simulator.report import leases, svg
from simulator.report.causes import causal_slice
from simulator.report.story import Story
from simulator.scenario_text import to_toml

if TYPE_CHECKING:
    from simulator.result import Result
    from simulator.world import World

ROWS_MAX: Final = 200  # of one table

LEGEND: Final = (
    ("attempt ok", "attempt whose result stands"),
    ("attempt beaten", "returned, but another attempt counts"),
    ("attempt failed", "failed"),
    ("attempt lost", "lost"),
    ("attempt undo", "compensation"),
)

HELD: Final = (
    "A row for each scope: a queue whose tasks run under one lease, a name that programs lock or lead. A bar is one tenure: one "
    "region, one token, votes of a majority. Bars of one scope never overlap, and where a region is cut off its bar ends "
    "before another one begins."
)

APART: Final = (
    "Commits that one region had applied and another had not yet, summed up; and how many different states there were. "
    "Zero, with one state, is convergence."
)


def html(world: World, result: Result, *, command: str = "") -> str:
    """The page. The world's records were kept; with a `Watch` among its checkers, clocks are drawn too."""
    story = Story.of(world)
    style = resources.files("simulator.report").joinpath("page.css").read_text("utf-8")
    verdict, css = ("all held", "good") if result.ok else ("violated" if result.violations else "unmet", "bad")
    body = [
        '<header><p class="kicker">crdtsync simulator</p>',
        f'<h1>{escape(result.scenario)} <span class="badge {css}">{verdict}</span></h1>',
        f'<p class="story">{escape(world.scenario.text)}</p>' if world.scenario.text else "",
        f"<p><code>{escape(command)}</code></p>" if command else "",
        "</header>",
        _tiles(result, story),
        _failures(world, result),
        '<section><h2>What happened</h2><p class="legend">',
        "".join(f'<span><svg width="16" height="9"><rect width="16" height="8" rx="2" class="{c}"/></svg>{escape(t)}</span>' for c, t in LEGEND),
        '<span><svg width="10" height="9"><path class="effect" d="M5,1l3,6h-6z"/></svg>effect on the world outside</span>',
        '<span><svg width="18" height="9"><path class="message" d="M0,8L18,1"/></svg>message (the largest of each moment)</span>',
        '<span><svg width="10" height="9"><path class="dropped" d="M2,2l6,6m0,-6l-6,6"/></svg>dropped</span>',
        '<span><svg width="16" height="9"><rect width="16" height="8" class="legend-down"/></svg>process down</span>',
        f'</p><div class="wide">{svg.lanes(story)}</div></section>',
        _leases(story),
        '<section><h2>How far the regions were apart</h2>',
        f'<p class="note">{APART}</p><div class="wide">{svg.divergence(story)}</div></section>',
    ]  # fmt: skip
    if story.clocks:
        body.append(
            '<section><h2>Clocks against true time</h2><p class="note">Lines are wall clocks; dots are the stamps '
            "that commits were given by hybrid clocks, which follow the monotonic clock and slew, so that a step of a wall "
            f'clock does not become one of order.</p><div class="wide">{svg.clocks(story)}</div></section>'
        )
    body.append(_section("Faults", _faults(story)))
    if story.conflicts:
        note = "What several regions did at once, by which rule it was decided, and what became of the task."
        columns = ("task", "name", "kind", "rule", "state", "detail")
        body.append(_section(f"Conflicts ({result.conflicts})", _table(story.conflicts, columns), note))
    if world.scenario.drawn:
        rows = [{"option": name, "drawn": value} for name, value in world.scenario.drawn.items()]
        body.append(_section("Drawn by the seed", _table(rows, ("option", "drawn"))))
    toml = to_toml(world.scenario)
    body.append(
        f"<section><details><summary>The scenario as TOML</summary><pre>{escape(toml)}</pre></details></section>"
    )
    body.append(f"<footer>seed {result.seed}, {result.kernel} kernel, trace <code>{result.trace_hash}</code></footer>")
    title = escape(f"{result.scenario}, seed {result.seed}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>\n{style}</style></head>\n<body>{''.join(body)}</body></html>\n"
    )


def _tiles(result: Result, story: Story) -> str:
    after = None if story.converged_us is None else max(0.0, (story.converged_us - story.healed_us) / 1_000_000)
    ended = ", ".join(f"{count} {state}" for state, count in result.tasks.items() if count and state != "submitted")
    tiles = (
        ("converged", "never" if after is None else f"{after:.2f} s", "after the healing"),
        ("tasks", f"{result.tasks.get('submitted', 0):,}", ended or "none"),
        ("ran twice", f"{result.double_runs:,}", f"{result.conflicts:,} conflicts resolved"),
        ("compensations", f"{result.compensations:,}", "made to undo what lost"),
        ("messages", f"{result.messages:,}", f"{result.bytes / 1_000:,.0f} kB"),
        ("virtual time", f"{result.virtual_s:,.1f} s", f"{result.events:,} events, seed {result.seed}"),
    )
    inner = "".join(
        f'<div class="tile"><p>{escape(name)}</p><strong>{escape(value)}</strong><small>{escape(note)}</small></div>'
        for name, value, note in tiles
    )
    return f'<section class="tiles">{inner}</section>'


def _failures(world: World, result: Result) -> str:
    if result.ok:
        return ""
    found = [
        f"<li><b>{escape(v.invariant)}</b> at {v.at_s:.3f} s: {escape(v.text)}</li>" for v in result.violations[:20]
    ]
    found += [f"<li>{escape(unmet)}</li>" for unmet in result.unmet]
    led = "\n".join(causal_slice(world, result))
    return (
        f'<section class="failures"><h2>What is wrong</h2><ul>{"".join(found)}</ul>'
        f'<details open><summary>What led to it</summary><pre class="slice">{escape(led)}</pre></details></section>'
    )


def _leases(story: Story) -> str:
    if not story.leases and not story.locks:
        return ""
    return (
        f'<section><h2>Who held what</h2><p class="note">{HELD}</p><p class="legend">{leases.legend(story)}</p>'
        f'<div class="wide">{leases.leases(story)}</div></section>'
    )


def _faults(story: Story) -> str:
    rows = [
        {
            "fault": band.text,
            "from": svg.seconds(band.start_us),
            "to": svg.seconds(band.end_us) if band.end_us > band.start_us else "",
            "changed something": svg.times(band.hits),
        }
        for band in story.bands
    ]
    return _table(rows, ("fault", "from", "to", "changed something")) if rows else "<p>None.</p>"


def _section(title: str, inner: str, note: str = "") -> str:
    told = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{told}{inner}</section>"


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = "".join(f"<tr>{''.join(_cells(row, columns))}</tr>" for row in rows[:ROWS_MAX])
    more = f'<p class="note">and {len(rows) - ROWS_MAX} more</p>' if len(rows) > ROWS_MAX else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>{more}'


def _cells(row: Mapping[str, Any], columns: Sequence[str]) -> Iterable[str]:
    for column in columns:
        yield f"<td>{escape(str(row.get(column, '')))}</td>"
