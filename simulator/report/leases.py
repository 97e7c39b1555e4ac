"""Leases and locks over time: a row per scope, a bar per tenure in its region's colour, programs' locks below theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

from simulator.report.story import Story
from simulator.report.svg import CHAR, CLOCK_COLOURS, GUTTER, RIGHT, Canvas, pack, seconds, times
from simulator.report.tenures import DIED, Holding, Tenure

SCOPES_MAX: Final = 24  # rows of scopes that have one each
ROWS_MAX: Final = 12  # of one group of scopes that share rows, and of the programs of one name
LEASE: Final = 15  # heights
SMALL: Final = 8
LOCK: Final = 8
GAP: Final = 9
LABEL_CHARS: Final = 13
SHARED: Final = {"key": "keys", "task": "tasks"}  # kinds of scope of which there are thousands: they share rows

Item = TypeVar("Item")


class Row:
    """What is drawn beside one label: tenures of one scope or of many, and programs under them."""

    def __init__(self, label: str, title: str, tenures: list[Tenure], locks: list[Holding], story: Story) -> None:
        self.label, self.title = label, title
        self.shared = len({tenure.scope for tenure in tenures}) > 1 or label in SHARED.values()
        # One scope has one holder at a time; a second row appears where that went wrong, or a dead holder's time runs on.
        self.tenures = _packed(tenures, [(t.start_us, max(t.over_us(story.end_us), t.start_us + 1)) for t in tenures])
        self.locks = _packed(locks, [(h.start_us, max(h.over_us(story.end_us), h.start_us + 1)) for h in locks])
        self.bar = SMALL if self.shared else LEASE
        self.left_out = len(tenures) - len(self.tenures)

    @property
    def locks_top(self) -> float:
        return (1 + max((row for row, _ in self.tenures), default=-1)) * self.bar + 2

    @property
    def height(self) -> float:
        return self.locks_top + (1 + max((row for row, _ in self.locks), default=-1)) * LOCK + GAP


def leases(story: Story) -> str:
    """Who held which scope under which token, from when until when; the same time axis as the lanes."""
    rows, more = _rows(story)
    top = 24.0
    bottom = top + sum(row.height for row in rows)
    canvas = Canvas(story, bottom + 24)
    canvas.axis(top, bottom)
    y = top
    for row in rows:
        canvas.rect(GUTTER, y, canvas.width - GUTTER - RIGHT, row.height - GAP / 2, "lane", rx=3)
        y += row.height
    for band in story.bands:
        x = canvas.x(band.start_us)
        width = max(canvas.x(band.end_us) - x, 2)
        canvas.rect(x, top, width, bottom - top, f"shade family-{band.fault.spec.family}", band.text)
    y = top
    for row in rows:
        canvas.add(
            "text", css="scope", text=_short(row.label), title=row.title, x=GUTTER - 8, y=y + 12, text_anchor="end"
        )
        for place, tenure in row.tenures:
            _tenure(canvas, story, tenure, y + 1 + place * row.bar, row.bar - 2)
        for place, holding in row.locks:
            _lock(canvas, story, holding, y + row.locks_top + place * LOCK)
        if row.left_out:
            canvas.label(GUTTER - 10, y + 25, f"+{row.left_out} not drawn", "tick", "end")
        y += row.height
    if more:
        canvas.label(GUTTER - 10, bottom + 14, f"+{more} scopes", "tick", "end")
    canvas.milestones(story, top - 16, bottom, labels=True)
    return str(canvas)


def legend(story: Story) -> str:
    """The colours of the regions, and the signs."""
    said = [
        f'<span><svg width="16" height="9"><rect width="16" height="8" rx="2" class="holder {_colour(story, region)}"/>'
        f"</svg>held by {region}</span>"
        for region in story.regions
    ]
    said.append(
        '<span><svg width="16" height="9"><rect width="16" height="8" class="legend-down"/></svg>'
        "its process died: the voters are bound all the same</span>"
    )
    if story.locks:
        said += [
            (
                '<span><svg width="16" height="9"><rect y="2" width="16" height="4" class="lock"/></svg>'
                "a program believes that it holds the lock</span>"
            ),
            '<span><svg width="6" height="9"><line x1="3" y1="0" x2="3" y2="9" class="act"/></svg>it wrote</span>',
            (
                '<span><svg width="10" height="9"><path class="dropped" d="M2,2l6,6m0,-6l-6,6"/></svg>'
                "it wrote too late, and was refused by its token</span>"
            ),
        ]
    return "".join(said)


def _rows(story: Story) -> tuple[list[Row], int]:
    """The rows, and how many scopes found none."""
    known: dict[str, list[Tenure]] = {}
    locks: dict[str, list[Holding]] = {}
    for tenure in story.leases:
        known.setdefault(_group(tenure.scope), []).append(tenure)
    for holding in story.locks:
        locks.setdefault(f"user:{holding.name}", []).append(holding)
    groups = sorted({*known, *locks}, key=lambda group: (group in SHARED, group))
    alone = [group for group in groups if group not in SHARED]
    rows = []
    for group in (*alone[:SCOPES_MAX], *groups[len(alone) :]):
        tenures = known.get(group, [])
        scopes = len({tenure.scope for tenure in tenures})
        title = f"{scopes:,} scopes of single {SHARED[group]}" if group in SHARED else group
        rows.append(Row(SHARED.get(group) or group.removeprefix("user:"), title, tenures, locks.get(group, []), story))
    return rows, len(alone[SCOPES_MAX:])


def _group(scope: str) -> str:
    kind = scope.partition(":")[0]
    return kind if kind in SHARED else scope


def _packed(items: Sequence[Item], spans: Sequence[tuple[int, int]]) -> list[tuple[int, Item]]:
    return [(row, item) for row, item in zip(pack(spans), items, strict=True) if row < ROWS_MAX]


def _tenure(canvas: Canvas, story: Story, tenure: Tenure, y: float, height: float) -> None:
    over_us = tenure.over_us(story.end_us)
    x, end = canvas.x(tenure.start_us), canvas.x(over_us)
    goes_on = not tenure.why and over_us == story.end_us
    why = tenure.why or ("it goes on" if goes_on else "its time is over")
    title = (
        f"{tenure.node} holds {tenure.scope} under token {tenure.token}, {seconds(tenure.start_us)} to {seconds(over_us)} "
        f"({why}); votes of {', '.join(tenure.voters)}; renewed {times(tenure.renewed)}; {tenure.ran:,} attempts under it"
    )
    canvas.rect(x, y, max(end - x, 1.5), height, f"holder {_colour(story, tenure.region)}", title, rx=2)
    if tenure.why == DIED and tenure.until_us > over_us:
        bound = canvas.x(min(tenure.until_us, story.end_us))
        canvas.rect(end, y, bound - end, height, "down", f"{title}; voters are bound until {seconds(tenure.until_us)}")
    if height < LEASE - 3:
        return
    told = f"{tenure.region} {tenure.token}"
    for text in (told, tenure.region):
        if end - x > CHAR * len(text) + 8:
            canvas.label(x + 5, y + height - 3, text, "holder-text")
            return


def _lock(canvas: Canvas, story: Story, holding: Holding, y: float) -> None:
    over_us = holding.over_us(story.end_us)
    x = canvas.x(holding.start_us)
    why = holding.why or ("it goes on" if over_us == story.end_us else "its time is over")
    region = holding.node.partition("~")[0]
    title = (
        f"{holding.owner} at {region} believes that it holds {holding.name} under token {holding.token}, "
        f"{seconds(holding.start_us)} to {seconds(over_us)} ({why})"
    )
    canvas.rect(x, y + 1, max(canvas.x(over_us) - x, 1.5), LOCK - 4, "lock", title, rx=1)
    for act in holding.acts:
        at = canvas.x(act.at_us)
        said = "" if act.looked else ", without looking at its lease"
        if act.taken:
            canvas.line(at, y - 1, at, y + LOCK - 2, "act", f"{holding.owner} wrote at {seconds(act.at_us)}{said}")
        else:
            refused = f"{holding.owner} wrote at {seconds(act.at_us)}{said}: refused, token {holding.token} is too old"
            canvas.add("path", css="dropped", title=refused, d=f"M{at - 2.5:.1f},{y:.1f}l5,5m0,-5l-5,5")


def _colour(story: Story, region: str) -> str:
    return f"held-{story.regions.index(region) % CLOCK_COLOURS}" if region in story.regions else "held-7"


def _short(label: str) -> str:
    return label if len(label) <= LABEL_CHARS else label[: LABEL_CHARS - 1] + "…"
