"""The pictures of a run, as SVG: colours come from the page's style, so that light and dark are one drawing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Final

from simulator.report.story import Band, Bar, Story, Tick

GUTTER: Final = 92  # left of the plots, for names
RIGHT: Final = 76  # and right of them, for the word at a milestone near the end
WIDTH: Final = 1160
PX_PER_S: Final = 8  # a long run gets a wider picture, and scrolls
WIDTH_MAX: Final = 6_000
ROWS_MAX: Final = 16  # of attempts beside each other in one lane
ROW: Final = 9
BAND_ROW: Final = 17
CHAR: Final = 6.9  # width of a letter of a label, as wide as browsers draw them in bold
GAP: Final = 34  # between lanes, for the messages
MESSAGES_MAX: Final = 700
CLOCK_COLOURS: Final = 8


class Canvas:
    """An SVG in the making. Times are true microseconds."""

    def __init__(self, story: Story, height: float) -> None:
        self.width = min(WIDTH_MAX, max(WIDTH, GUTTER + RIGHT + round(story.end_us / 1_000_000 * PX_PER_S)))
        self.height = height
        self.end_us = story.end_us
        self._parts: list[str] = []

    def x(self, at_us: float) -> float:
        return GUTTER + (self.width - GUTTER - RIGHT) * at_us / self.end_us

    def add(self, name: str, *, css: str = "", title: str = "", text: str = "", **attributes: float | str) -> None:
        told = "".join(f' {key.replace("_", "-").strip("-")}="{_number(value)}"' for key, value in attributes.items())
        css = f' class="{css}"' if css else ""
        inner = f"<title>{escape(title)}</title>" if title else ""
        self._parts.append(f"<{name}{css}{told}>{inner}{escape(text)}</{name}>")

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str, title: str = "", marker: str = "") -> None:
        more = {"marker_end": f"url(#{marker})"} if marker else {}
        self.add("line", css=css, title=title, x1=x1, y1=y1, x2=x2, y2=y2, **more)

    def label(self, x: float, y: float, text: str, css: str = "", anchor: str = "start") -> None:
        self.add("text", css=css, text=text, x=x, y=y, text_anchor=anchor)

    def rect(self, x: float, y: float, width: float, height: float, css: str, title: str = "", rx: float = 0) -> None:
        self.add("rect", css=css, title=title, x=x, y=y, width=max(width, 0.5), height=height, rx=rx)

    def polyline(self, points: Iterable[tuple[float, float]], css: str, title: str = "") -> None:
        self.add("polyline", css=css, title=title, points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points))

    def axis(self, top: float, bottom: float, *, labels: bool = True) -> None:
        """Vertical lines at round times."""
        step_s = _step(self.end_us / 1_000_000, (self.width - GUTTER) / 90)
        at_s = 0.0
        while at_s * 1_000_000 <= self.end_us:
            x = self.x(at_s * 1_000_000)
            self.line(x, top, x, bottom, "grid")
            if labels:
                self.label(x, bottom + 14, time_text(at_s), "tick", "middle")
            at_s += step_s

    def milestones(self, story: Story, top: float, bottom: float, *, labels: bool) -> None:
        """Where faults were healed, and where all were equal."""
        for at_us, css, text in ((story.healed_us, "healed", "healed"), (story.converged_us, "converged", "converged")):
            if at_us is None or at_us > self.end_us:
                continue
            x = self.x(at_us)
            self.line(x, top, x, bottom, css)
            if labels:
                left = css == "healed"
                self.label(x - 5 if left else x + 5, top + 10, text, f"{css}-text", "end" if left else "start")

    def __str__(self) -> str:
        arrows = "".join(
            f'<marker id="{name}" viewBox="0 0 6 6" refX="5.5" refY="3" markerWidth="5" markerHeight="5" orient="auto">'
            f'<path d="M0,0.6L6,3L0,5.4z" class="{name}-head"/></marker>'
            for name in ("arrow",)
        )
        hatch = (
            '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
            '<rect width="6" height="6" class="down-ground"/><rect width="2" height="6" class="down-stripe"/></pattern>'
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height:g}" '
            f'viewBox="0 0 {self.width} {self.height:g}" role="img"><defs>{arrows}{hatch}</defs>'
            f"{''.join(self._parts)}</svg>"
        )


def lanes(story: Story) -> str:
    """Faults above, a lane per region below: who was down, what ran, what was done, what was said."""
    band_rows = pack([(band.start_us, _label_end_us(story, band)) for band in story.bands])
    strip = (max(band_rows, default=-1) + 1) * BAND_ROW + (22 if story.bands else 12)
    packed = {region: _packed(story, region) for region in story.regions}
    heights = {region: 14 + max(3, rows) * ROW + 8 for region, (rows, _, _) in packed.items()}
    top, y = strip + 4, strip + 4.0
    tops: dict[str, float] = {}
    for region in story.regions:
        tops[region] = y
        y += heights[region] + GAP
    y -= GAP - 6
    canvas = Canvas(story, y + 24)
    canvas.axis(4, y)
    for region in story.regions:
        canvas.rect(GUTTER, tops[region], canvas.width - GUTTER - RIGHT, heights[region], "lane", rx=4)
        canvas.label(GUTTER - 10, tops[region] + heights[region] / 2 + 5, region, "region", "end")
    for band, row in zip(story.bands, band_rows, strict=True):
        _band(canvas, band, row, tops, heights)
    for gap in story.downs:
        x = canvas.x(gap.start_us)
        what = f"{gap.region} is down from {seconds(gap.start_us)} to {seconds(gap.end_us)}: {gap.reason}"
        canvas.rect(x, tops[gap.region], canvas.x(gap.end_us) - x, heights[gap.region], "down", what)
    _messages(canvas, story, tops, heights)
    for tick in story.members:
        _member(canvas, tick, tops, heights)
    for region in story.regions:
        _attempts(canvas, story, region, packed[region], tops[region] + 12)
    canvas.milestones(story, top - 16, y, labels=True)
    return str(canvas)


def _label_end_us(story: Story, band: Band) -> int:
    """Until when a band and the text beside it take their row."""
    text_us = round(CHAR * len(band.text) * story.end_us / (Canvas(story, 0).width - GUTTER - RIGHT))
    inside = band.end_us - band.start_us > text_us * 1.1
    return band.end_us if inside else band.end_us + text_us + story.end_us // 100


def _band(canvas: Canvas, band: Band, row: int, tops: Mapping[str, float], heights: Mapping[str, float]) -> None:
    x, end = canvas.x(band.start_us), canvas.x(band.end_us)
    css = f"family-{band.fault.spec.family}"
    y = 2 + row * BAND_ROW
    title = f"{band.text}, from {seconds(band.start_us)}; it changed something {times(band.hits)}"
    canvas.rect(x, y, max(end - x, 3), BAND_ROW - 3, f"band {css}", title, rx=3)
    if end - x > CHAR * len(band.text) + 8:
        canvas.label(x + 6, y + 11, band.text, "band-text inside")
    elif x < canvas.width - CHAR * len(band.text) - (end - x):
        canvas.label(max(end, x + 3) + 5, y + 11, band.text, "band-text")
    else:
        canvas.label(x - 5, y + 11, band.text, "band-text", "end")
    for region in band.regions:
        canvas.rect(x, tops[region], max(end - x, 2), heights[region], f"shade {css}", title)


def _packed(story: Story, region: str) -> tuple[int, list[tuple[int, Bar]], int]:
    """Rows needed, attempts with their rows, and how many found no row."""
    bars = sorted((bar for bar in story.bars if bar.region == region), key=lambda bar: (bar.start_us, bar.attempt))
    gap_us = story.end_us // 400
    rows = pack([(bar.start_us, bar.end_us + gap_us) for bar in bars])
    shown = [(row, bar) for row, bar in zip(rows, bars, strict=True) if row < ROWS_MAX]
    return min(ROWS_MAX, max(rows, default=-1) + 1), shown, len(bars) - len(shown)


def _attempts(
    canvas: Canvas, story: Story, region: str, packed: tuple[int, list[tuple[int, Bar]], int], y: float
) -> None:
    places: dict[str, float] = {}
    for row, bar in packed[1]:
        x, top = canvas.x(bar.start_us), y + row * ROW
        places[bar.task[:8]] = top
        css = "undo" if bar.undoes else bar.outcome if bar.outcome != "ok" or bar.wins else "beaten"
        what = {"undo": "undoes what another attempt did", "beaten": "returned, and another attempt's result stands"}
        told = what.get(css, {"ok": "its result stands", "open": "never ended"}.get(css, css))
        title = (
            f"{bar.name} (task {bar.task[:8]}) in {region}, {seconds(bar.start_us)} to {seconds(bar.end_us)}: {told}"
        )
        canvas.rect(x, top, max(2.5, canvas.x(bar.end_us) - x), ROW - 2.5, f"attempt {css}", title, rx=1.5)
    for tick in story.effects:
        if tick.region == region:
            top = places.get(tick.text.rpartition(" ")[2], y)
            x = canvas.x(tick.at_us)
            css = "effect undone" if tick.text.startswith("undo") else "effect"
            title = f"{tick.text} in {region} at {seconds(tick.at_us)}"
            canvas.add("path", css=css, title=title, d=f"M{x:.1f},{top - 2.5:.1f}l2.6,4.6h-5.2z")
    if packed[2]:
        canvas.label(GUTTER - 10, y + packed[0] * ROW, f"+{packed[2]} not drawn", "tick", "end")


def _member(canvas: Canvas, tick: Tick, tops: Mapping[str, float], heights: Mapping[str, float]) -> None:
    """A change of the membership, where it was written down first."""
    if tick.region not in tops:
        return
    x, y, height = canvas.x(tick.at_us), tops[tick.region], heights[tick.region]
    title = f"{tick.region} writes down at {seconds(tick.at_us)}: {tick.text}"
    canvas.line(x, y, x, y + height, "member", title)
    left = x > canvas.width - RIGHT - CHAR * len(tick.text)
    canvas.label(x - 4 if left else x + 4, y + height - 4, tick.text, "member-text", "end" if left else "start")


def _messages(canvas: Canvas, story: Story, tops: Mapping[str, float], heights: Mapping[str, float]) -> None:
    places = max(60, (canvas.width - GUTTER) // 14)
    order = list(story.regions)
    for message in story.most_telling(MESSAGES_MAX, places):
        if message.source not in tops or message.target not in tops or message.source == message.target:
            continue
        downward = order.index(message.target) > order.index(message.source)
        y1 = tops[message.source] + (heights[message.source] if downward else 0)
        y2 = tops[message.target] + (0 if downward else heights[message.target])
        x1 = canvas.x(message.sent_us)
        pair = f"{message.source} to {message.target}, {message.bytes} bytes at {seconds(message.sent_us)}"
        if message.arrived_us is None:
            way = 1 if downward else -1
            canvas.add(
                "path", css="dropped", title=f"dropped: {pair}", d=f"M{x1:.1f},{y1:.1f}v{7 * way}m-2,-2l4,4m0,-4l-4,4"
            )
        else:
            canvas.line(x1, y1, canvas.x(message.arrived_us), y2, "message", pair, "arrow")


def divergence(story: Story) -> str:
    """Commits that regions lacked of one another's, falling to zero; and how many states they showed."""
    height, bottom, top = 190, 160.0, 26.0
    canvas = Canvas(story, height)
    samples = story.divergence
    most = max([sample.missing for sample in samples] + [1])
    states = max([sample.states for sample in samples] + [2])

    def y(value: float, of: float) -> float:
        return bottom - (bottom - top) * value / of

    canvas.axis(top, bottom)
    for share in (0.0, 0.5, 1.0):
        canvas.line(GUTTER, y(share, 1), canvas.width - RIGHT, y(share, 1), "grid")
        canvas.label(GUTTER - 8, y(share, 1) + 4, f"{most * share:.0f}", "tick", "end")
    for band in story.bands:
        x = canvas.x(band.start_us)
        canvas.rect(
            x, top, max(canvas.x(band.end_us) - x, 2), bottom - top, f"shade family-{band.fault.spec.family}", band.text
        )
    steps = list(_steps([(canvas.x(s.at_us), y(s.missing, most)) for s in samples]))
    if steps:
        area = [(steps[0][0], bottom), *steps, (steps[-1][0], bottom)]
        canvas.add("polygon", css="area", points=" ".join(f"{x:.1f},{at:.1f}" for x, at in area))
        canvas.polyline(steps, "missing", "commits that some region lacked of another's, summed up")
        canvas.polyline(_steps([(canvas.x(s.at_us), y(max(0, s.states - 1), states - 1)) for s in samples]), "states")
    canvas.label(GUTTER + 6, 14, f"commits not yet everywhere (most: {most})", "missing-text")
    canvas.label(GUTTER + 290, 14, f"different states at once (most: {states})", "states-text")
    canvas.milestones(story, top, bottom, labels=False)
    if story.converged_us is not None:
        x = canvas.x(story.converged_us)
        took = max(0, story.converged_us - story.healed_us)
        canvas.add("circle", css="converged-dot", cx=x, cy=bottom, r=5)
        after = f"{seconds(took)} after the healing" if took else "when it was healed"
        text = f"all equal at {seconds(story.converged_us)}, {after}"
        left = x < canvas.width - 320
        canvas.label(x + (9 if left else -9), bottom - 10, text, "converged-text", "start" if left else "end")
    return str(canvas)


def clocks(story: Story) -> str:
    """How far each wall clock is off true time, and the stamps that were given meanwhile; on a symmetric log scale."""
    height, bottom, top = 236, 200.0, 30.0
    canvas = Canvas(story, height)
    largest = [abs(error) for line in (*story.clocks.values(), *story.stamps.values()) for _, error in line]
    limit_ms = max([10.0, *(error / 1_000 for error in largest)])

    def y(error_us: float) -> float:
        middle = (top + bottom) / 2
        return middle - (bottom - top) / 2 * _symlog(error_us / 1_000) / _symlog(limit_ms * 1.2)

    canvas.axis(top, bottom)
    marks = [0.0]
    told_at: list[float] = []
    for size in (10.0, 100.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0):
        if size <= limit_ms * 1.2:
            marks += [size, -size]
    for mark in marks:
        canvas.line(GUTTER, y(mark * 1_000), canvas.width - RIGHT, y(mark * 1_000), "true-time" if not mark else "grid")
        if any(abs(y(mark * 1_000) - place) < 13 for place in told_at):
            continue
        told_at.append(y(mark * 1_000))
        told = f"{mark / 1_000:+g} s" if abs(mark) >= 1_000 else f"{mark:+g} ms" if mark else "true time"
        canvas.label(GUTTER - 8, y(mark * 1_000) + 4, told, "tick", "end")
    for number, region in enumerate(story.regions):
        colour = f"clock-{number % CLOCK_COLOURS}"
        for at_us, error_us in _thinned(story.stamps.get(region, []), 600):
            canvas.add("circle", css=f"stamp {colour}", cx=canvas.x(at_us), cy=y(error_us), r=1.6)
        line = _thinned(story.clocks.get(region, []), 2_000)
        canvas.polyline(_steps([(canvas.x(at), y(error)) for at, error in line]), f"clock {colour}", region)
        canvas.label(GUTTER + 6 + number * 74, 16, f"— {region}", f"clock-text {colour}")
    canvas.milestones(story, top, bottom, labels=False)
    return str(canvas)


def pack(spans: Sequence[tuple[int, int]]) -> list[int]:
    """A row for each span, so that spans of one row do not touch; the spans are in order of their start."""
    ends: list[int] = []
    rows: list[int] = []
    for start, end in spans:
        row = next((place for place, last in enumerate(ends) if last <= start), len(ends))
        if row == len(ends):
            ends.append(end)
        ends[row] = end
        rows.append(row)
    return rows


def seconds(at_us: float) -> str:
    return f"{at_us / 1_000_000:.3g} s" if at_us < 1_000_000 else f"{at_us / 1_000_000:.2f} s"


def times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count:,} times")


def time_text(at_s: float) -> str:
    if at_s >= 3_600:
        return f"{at_s / 3_600:g} h"
    return f"{at_s / 60:g} min" if at_s >= 120 and at_s % 60 == 0 else f"{at_s:g} s"


def _steps(points: Sequence[tuple[float, float]]) -> Iterable[tuple[float, float]]:
    """A line that stays where it was until the next point."""
    last: float | None = None
    for x, y in points:
        if last is not None and last != y:
            yield x, last
        yield x, y
        last = y


def _thinned(points: Sequence[tuple[int, int]], count_max: int) -> Sequence[tuple[int, int]]:
    every = -(-len(points) // count_max) or 1
    return points[::every]


def _symlog(value: float) -> float:
    """Linear near zero, logarithmic beyond."""
    return math.copysign(math.log10(1 + abs(value) / 5), value)


def _step(whole: float, places: float) -> float:
    """A round step that divides `whole` into about so many places."""
    rough = whole / max(1.0, places)
    nice: tuple[float, ...] = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600, 86_400)
    pick: Callable[[float], bool] = rough.__le__
    return next(filter(pick, nice), 86_400.0 * math.ceil(rough / 86_400))


def _number(value: float | str) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
