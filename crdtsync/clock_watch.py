"""Is this region's clock right? What a majority of the regions says, and what follows from it (design 4).

Every clock, ours among them, is taken for right within half of `max_skew_ms`; with the uncertainty of its measurement
that is an interval (`majority`). Where a majority of *all* members has a point in common, the true time is there, if a
majority of the clocks is right. Of a region that knows the clocks of so many:

    agrees      ours holds such a point                          it goes on
    off         such points exist, and ours holds none of them   it stamps nothing new
    split       there is no such point                           it goes on, and raises an alarm: nobody can tell
    ahead       ours is right, but it was ahead and its stamps   it stamps nothing new until they are at most
                still are, by more than `max_skew_ms`            `max_skew_ms` ahead

One that knows fewer is `unmeasured` and goes on; a minority does not judge itself. So two members off from each other
both alarm and neither stops, and one bad clock of three never stops a good region. A clock within half of `max_skew_ms`
of true time is never called off; one further off than 1.5 times `max_skew_ms` and twice the uncertainty always is, by a
ping to each of a majority of good ones.

Whoever stamps nothing goes on to gossip, to store and relay commits, and to serve reads. What it would have to write is
refused, or waits: docs/decisions/0010. It is over as soon as the clock is right: when a majority contradicts our time and
agrees with the wall clock, somebody has set that right, and it is taken over. While a majority contradicts the wall
clock it is not followed, so a wall clock that is set wrong on a running node stops nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from crdtsync.clock import HybridClock, Now
from crdtsync.errors import ClockOffError
from crdtsync.gossip.offsets import RESOLUTION_MS, Offset
from crdtsync.identifiers import RegionId
from crdtsync.majority import Interval, Shared, majority_of, shared

CHECK_MS: Final = 500  # how often clocks are compared when nothing new was measured
CALM_MS: Final = 60_000  # an alarm about a clock may ring again once it has been right for so long


class Verdict(StrEnum):
    """Of one clock."""

    #: It is of a cluster of one: there is nobody to ask.
    ALONE = "alone"
    #: Too few clocks are known.
    UNMEASURED = "unmeasured"
    AGREES = "agrees"
    OFF = "off"
    SPLIT = "split"
    AHEAD = "ahead"


STOPPED: Final = frozenset({Verdict.OFF, Verdict.AHEAD})

_ADVICE: Final[dict[Verdict, str]] = {
    Verdict.OFF: "set this machine's clock right (chronyc makestep); `crdtsync clock show` tells how far it is off",
    Verdict.SPLIT: "compare the machines' clocks and set the wrong one right: `crdtsync clock show` in each region",
    Verdict.AHEAD: "the clock is right again, and was ahead: wait until time has caught up with its stamps",
}


class Judgement(NamedTuple):
    """What is known about all clocks at one moment. Offsets are against our own time."""

    verdict: Verdict
    needed: int  # clocks that make a majority
    measured: int  # ours included
    agree: int  # of the majority, the most that share a point
    offset_ms: int | None  # of the majority's time against ours
    uncertainty_ms: int | None
    wall: Verdict
    peers: Mapping[RegionId, Verdict]


def judge(
    offsets: Mapping[RegionId, Offset | None], *, max_skew_ms: int, skew_ms: int = 0, lead_ms: int = 0
) -> Judgement:
    """Judge all clocks.

    Args:
        offsets: Of all other members' clocks against our time; None where not measured.
        skew_ms: How far our wall clock is ahead of our time.
        lead_ms: How far our stamps are ahead of our time.
    """
    reach_ms = max_skew_ms // 2
    mine = Interval.around(0, reach_ms)
    theirs = {
        region: Interval.around(offset.offset_ms, offset.uncertainty_ms + reach_ms)
        for region, offset in offsets.items()
        if offset is not None
    }
    members, measured = 1 + len(offsets), 1 + len(theirs)
    needed = majority_of(members)
    unknown = dict.fromkeys(offsets, Verdict.UNMEASURED)
    if members <= 1 or measured < needed:
        verdict = Verdict.ALONE if members <= 1 else Verdict.UNMEASURED
        return Judgement(verdict, needed, measured, 0, None, None, Verdict.UNMEASURED, unknown)
    agreed = shared((mine, *theirs.values()), needed)
    if not agreed:
        split: dict[RegionId, Verdict] = {
            region: Verdict.SPLIT if region in theirs else Verdict.UNMEASURED for region in offsets
        }
        return Judgement(Verdict.SPLIT, needed, measured, 0, None, None, Verdict.SPLIT, split)

    def fits(interval: Interval) -> Verdict:
        return Verdict.AGREES if any(interval.meets(part.stretch) for part in agreed) else Verdict.OFF

    best = max(agreed, key=lambda part: (part.most, -_distance_ms(part)))
    verdict = fits(mine)
    if verdict is Verdict.AGREES and lead_ms > max_skew_ms:
        verdict = Verdict.AHEAD
    peers = {region: fits(theirs[region]) if region in theirs else Verdict.UNMEASURED for region in offsets}
    wide_ms = (best.stretch.high - best.stretch.low) // 2
    return Judgement(
        verdict,
        needed,
        measured,
        best.most,
        best.stretch.middle,
        max(RESOLUTION_MS, wide_ms - reach_ms),
        fits(Interval.around(skew_ms, reach_ms)),
        peers,
    )


def _distance_ms(part: Shared) -> int:
    return max(part.stretch.low, -part.stretch.high, 0)


class ClockWatch:
    """Looks at the clocks, tells the rest of the replica whether it may stamp, and rings once per trouble.

    Args:
        offsets: The measured offsets of the other members' clocks (`Gossip`), None where there is none.
        samples: How many measurements were ever taken: when it grows, it is judged anew.
        alarm: Raises an alarm; `calm` ends it, so that it may ring again.
        notify: Tells operators: level, what, facts.
    """

    def __init__(
        self,
        me: RegionId,
        clock: HybridClock,
        *,
        offsets: Callable[[Now], Mapping[RegionId, Offset | None]],
        samples: Callable[[], int],
        alarm: Callable[..., None],
        calm: Callable[..., None],
        notify: Callable[..., None],
    ) -> None:
        self._me = me
        self._clock = clock
        self._offsets = offsets
        self._samples = samples
        self._alarm = alarm
        self._calm = calm
        self._notify = notify
        self._looked_ms: int | None = None
        self._seen = -1
        self._ringing: dict[str, int] = {}  # alarms, and when the trouble was last seen
        self.judgement = Judgement(Verdict.UNMEASURED, 1, 1, 0, None, None, Verdict.UNMEASURED, {})

    @property
    def verdict(self) -> Verdict:
        return self.judgement.verdict

    @property
    def stopped(self) -> bool:
        """Whether nothing new may be stamped."""
        return self.judgement.verdict in STOPPED

    def error(self, now: Now) -> ClockOffError:
        """Why nothing is written, for whoever asked for it."""
        judgement = self.judgement
        advice = f"nothing was done; ask another region, or again once it is right: {_ADVICE[judgement.verdict]}"
        if judgement.verdict is Verdict.AHEAD:
            lead_ms = self._clock.lead_ms(now)
            return ClockOffError(
                f"the stamps of {self._me} are {lead_ms / 1_000:g} s ahead of its time, {advice}",
                region=self._me,
                lead_ms=lead_ms,
                retry_after_ms=lead_ms - self._clock.max_skew_ms,
            )
        off_ms = -(judgement.offset_ms or 0)
        return ClockOffError(
            f"the clock of {self._me} is {_way(off_ms)} a majority of the regions "
            f"(± {judgement.uncertainty_ms} ms, limit {self._clock.max_skew_ms} ms): {advice}",
            region=self._me,
            off_ms=off_ms,
            uncertainty_ms=judgement.uncertainty_ms,
            limit_ms=self._clock.max_skew_ms,
        )

    def due(self, now: Now) -> bool:
        """Whether it is time to look again."""
        return self._looked_ms is None or self._samples() != self._seen or now.mono_ms - self._looked_ms >= CHECK_MS

    def look(self, now: Now) -> None:
        """Compare the clocks. Sets ours to the wall clock where a majority agrees with that one and not with ours."""
        self._looked_ms, self._seen = now.mono_ms, self._samples()
        judgement = self._judge(now)
        if judgement.verdict is Verdict.OFF and judgement.wall is Verdict.AGREES:
            self._notify("warning", "clock.set", by_ms=self._clock.skew_ms(now), offset_ms=judgement.offset_ms)
            self._clock.set_to_wall(now)
            judgement = self._judge(now)
        self._clock.follows_wall = judgement.wall is not Verdict.OFF
        before, self.judgement = self.judgement, judgement
        if before.verdict in STOPPED and not self.stopped:
            self._notify("info", "clock.right", verdict=str(judgement.verdict))
        self._ring(now)

    def _judge(self, now: Now) -> Judgement:
        return judge(
            self._offsets(now),
            max_skew_ms=self._clock.max_skew_ms,
            skew_ms=self._clock.skew_ms(now),
            lead_ms=self._clock.lead_ms(now),
        )

    def _ring(self, now: Now) -> None:
        """One alarm for each trouble, however often it comes and goes."""
        judgement = self.judgement
        troubles: dict[str, dict[str, Any]] = {}
        if judgement.verdict in _ADVICE:
            troubles[f"clock.{judgement.verdict}"] = {"advice": _ADVICE[judgement.verdict]}
        if abs(self._clock.skew_ms(now)) > self._clock.max_skew_ms:
            troubles["clock.wall"] = {"advice": "the wall clock was set, or stands still: look at this machine's NTP"}
        for region, verdict in judgement.peers.items():
            if verdict is Verdict.OFF:
                troubles[f"clock.peer/{region}"] = {"peer": region, "advice": f"set the clock of {region} right"}
        for what, facts in troubles.items():
            if what not in self._ringing:
                self._alarm(what.partition("/")[0], **facts)
            self._ringing[what] = now.mono_ms
        for what, seen_ms in list(self._ringing.items()):
            if what not in troubles and now.mono_ms - seen_ms >= CALM_MS:
                del self._ringing[what]
                kind, _, peer = what.partition("/")
                self._calm(kind, **({"peer": peer} if peer else {}))


def _way(off_ms: int) -> str:
    return f"{abs(off_ms) / 1_000:g} s {'ahead of' if off_ms > 0 else 'behind'}"


__all__ = ["CALM_MS", "CHECK_MS", "ClockWatch", "Judgement", "Verdict", "judge"]
