"""What people see of gossip: plain records for `region list` and `region links`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from crdtsync.clock import Now
from crdtsync.gossip.liveness import Liveness
from crdtsync.gossip.peer import Peer
from crdtsync.gossip.wire import Wire
from crdtsync.identifiers import DEFAULT_DOMAIN, RegionId
from crdtsync.log.heads import Heads

NOTHING = Heads()


def region_records(
    wire: Wire,
    peers: Mapping[RegionId, Peer],
    liveness: Liveness,
    *,
    cut: Collection[RegionId],
    now: Now,
    started: Now,
) -> list[dict[str, Any]]:
    """One record per region, this one first. Of peers, digest and heads are as last heard.

    `behind` counts the commits that we have applied and the region, as last heard, has not; in our own record, those
    that some peer said it has and we lack. With several domains digest and heads are those of the first or `default`.
    """
    shown = DEFAULT_DOMAIN if DEFAULT_DOMAIN in wire.logs else min(wire.logs)
    applied = {domain: log.applied for domain, log in wire.logs.items()}
    others = [peer for region, peer in peers.items() if region != wire.me]
    heads, digest = wire.host.digest(shown)
    own_ms = wire.host.time_ms(now)
    known = {domain: _join(peer.last_have.get(domain, NOTHING) for peer in others) for domain in wire.logs}
    behind = sum(_lacks(log.have, known[domain]) for domain, log in wire.logs.items())
    records = [_record(wire.me, "self", digest, heads, behind, offset=None) | {"self": True, "offset_ms": 0}]
    for peer in others:
        link = peer.open_link
        record = _record(
            peer.region,
            _status(peer, wire, liveness, cut=cut, now=now, started=started),
            peer.last_digest.get(shown, b""),
            peer.last_applied.get(shown, NOTHING),
            sum(_lacks(peer.last_applied.get(domain, NOTHING), mine) for domain, mine in applied.items()),
            offset=peer.clock.best(own_ms, now.mono_ms) if link is not None else None,
        )
        heard = liveness.last_heard(peer.region)
        record["silent_ms"] = None if heard is None else max(0, now.mono_ms - heard)
        record["diverged"] = bool(peer.diverged)
        record["refused"] = peer.refused
        records.append(record)
    return records


def link_records(wire: Wire, peers: Mapping[RegionId, Peer], now: Now) -> list[dict[str, Any]]:
    """One record per other region."""
    records = []
    own_ms = wire.host.time_ms(now)
    for region, peer in peers.items():
        if region == wire.me:
            continue
        link = peer.link
        record: dict[str, Any] = {
            "region": region,
            "state": "closed" if link is None else str(link.session.state),
            "refused": peer.refused,
            "untaken_bytes": peer.credit_in.untaken,
            "features": peer.features,
        }
        if link is not None and link.is_open:
            best = peer.clock.best(own_ms, now.mono_ms)
            record |= {
                "writer": link.hello.writer,
                "since_ms": link.opened.wall_ms,
                "phi": round(link.detector.phi(now.mono_ms), 2),
                "rtt_ms": None if best is None else best.rtt_ms,
                "offset_ms": None if best is None else best.offset_ms,
                "uncertainty_ms": None if best is None else best.uncertainty_ms,
                "credit_bytes": link.credit.available,
                "unsent": {
                    domain: ours.feed.lacks(wire.logs[domain].durable_have) for domain, ours in link.domains.items()
                },
                "links": sorted(link.links),
                "frames_lost": link.session.missed + link.their_missed,
                "snapshot": None if link.sending is None else link.sending.domain,
            }
        records.append(record)
    return records


def _record(region: RegionId, status: str, digest: bytes, heads: Heads, behind: int, *, offset: Any) -> dict[str, Any]:
    return {
        "region": region,
        "self": False,
        "status": status,
        "digest": digest.hex(),
        "heads": dict(heads.items()),
        "behind": behind,
        "rtt_ms": None if offset is None else offset.rtt_ms,
        "offset_ms": None if offset is None else offset.offset_ms,
    }


def _status(peer: Peer, wire: Wire, liveness: Liveness, *, cut: Collection[RegionId], now: Now, started: Now) -> str:
    """`cut` by us; `up` or `suspect` with a link; without one `unreachable`, or `silent` when nobody hears it either."""
    if peer.region in cut:
        return "cut"
    if peer.open_link is not None:
        return "suspect" if peer.open_link.suspected else "up"
    heard = liveness.last_heard(peer.region)
    since_ms = started.mono_ms if heard is None else max(heard, started.mono_ms)
    return "silent" if now.mono_ms - since_ms >= wire.settings.silent_after_ms else "unreachable"


def _lacks(has: Heads, other: Heads) -> int:
    return sum(span.last - span.first + 1 for span in has.lacking(other))


def _join(heads: Any) -> Heads:
    joined = Heads()
    for each in heads:
        joined = joined.join(each)
    return joined
