"""What people see of a region's clock, and of what waits for its time: plain records for `clock show` and the status."""

from __future__ import annotations

from typing import Any, Final

from crdtsync.clock import SLEW_PPM_MAX
from crdtsync.clock_watch import ClockWatch, Verdict
from crdtsync.gossip.gossip import Gossip
from crdtsync.log.domain_log import DomainLog
from crdtsync.log.verdicts import Wait
from crdtsync.region import RegionState

CLOCK_ALARMS: Final = ("clock.", "log.held_back", "log.far_ahead")


def clock_record(here: RegionState, watch: ClockWatch, gossip: Gossip) -> dict[str, Any]:
    """One record: our clocks, the verdict, a row per peer, what is held back, alarms. Offsets are against our time."""
    now, judgement = here.now, watch.judgement
    skew_ms = here.clock.skew_ms(now)
    lead_ms = here.clock.lead_ms(now)
    return {
        "region": here.me,
        "writer": here.writer,
        "verdict": str(judgement.verdict),
        "stamps": here.stamps,
        "advice": str(watch.error(now)) if watch.stopped else "",
        "wall_ms": now.wall_ms,
        "time_ms": here.time_ms,
        "skew_ms": skew_ms,
        "wall_verdict": str(judgement.wall),
        "slew_ppm": SLEW_PPM_MAX * ((skew_ms > 0) - (skew_ms < 0)) if here.clock.follows_wall else 0,
        "lead_ms": lead_ms,
        "stamps_from_ms": here.time_ms + lead_ms - here.clock.max_skew_ms
        if judgement.verdict is Verdict.AHEAD
        else None,
        "max_skew_ms": here.clock.max_skew_ms,
        "max_hold_ms": here.log.limits.max_hold_ms,
        "majority": {
            "needed": judgement.needed,
            "measured": judgement.measured,
            "agree": judgement.agree,
            "offset_ms": judgement.offset_ms,
            "uncertainty_ms": judgement.uncertainty_ms,
        },
        "peers": [_peer_record(here, watch, gossip, region) for region in sorted(judgement.peers)],
        "held_back": [held for held in held_back_records(here.log) if held["wait"] in (Wait.STAMP, Wait.FAR_AHEAD)],
        "alarms": [alarm for alarm in here.alarms.values() if str(alarm["what"]).startswith(CLOCK_ALARMS)],
    }


def _peer_record(here: RegionState, watch: ClockWatch, gossip: Gossip, region: Any) -> dict[str, Any]:
    clock = gossip.clock_of(region)
    best, drift = clock.best(here.time_ms, here.now.mono_ms), clock.drift()
    return {
        "region": region,
        "verdict": str(watch.judgement.peers[region]),
        "offset_ms": None if best is None else best.offset_ms,
        "uncertainty_ms": None if best is None else best.uncertainty_ms,
        "rtt_ms": None if best is None else best.rtt_ms,
        "age_ms": None if best is None else best.age_ms,
        "drift_ppm": None if drift is None else drift.ppm,
        "drift_uncertainty_ppm": None if drift is None else drift.uncertainty_ppm,
    }


def held_back_records(log: DomainLog) -> list[dict[str, Any]]:
    """The first commit of each writer that is here and not applied, why, and how many there are."""
    records = []
    for waiting in log.waiting():
        commits, last_ms = log.held_back(waiting.writer)
        by_stamp = waiting.wait in (Wait.STAMP, Wait.FAR_AHEAD)
        records.append(
            {
                "writer": waiting.writer,
                "number": waiting.number,
                "wait": str(waiting.wait),
                "until_ms": waiting.until_ms,
                "commits": commits,
                "all_until_ms": last_ms if by_stamp else None,
            }
        )
    return records
