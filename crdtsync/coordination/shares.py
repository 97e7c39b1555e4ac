"""Who should hold how many of a limit's rights, and who passes what to whom: arithmetic that every region does alike.

Each region hears what the others hold and want, and gives away what is not its own by this reckoning. Nobody takes, so a
wrong or an old number makes a share less fair for a moment and never one right more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from crdtsync.identifiers import RegionId


def dealt(total: int, wants: Mapping[RegionId, int], order: Collection[RegionId]) -> dict[RegionId, int]:
    """So many rights among regions that want some: in proportion, never more than wanted, one each if there are enough.

    Args:
        order: Who comes first where that must be decided, all of `wants`: whoever has waited longest.
    """
    wanting = [region for region in order if wants[region] > 0]
    if sum(wants[region] for region in wanting) <= total:
        return {region: max(0, want) for region, want in wants.items()}
    deal = dict.fromkeys(wants, 0)
    for region in wanting[:total]:
        deal[region] = 1
    left = total - len(wanting)
    rest = {region: wants[region] - 1 for region in wanting}
    whole = sum(rest.values())
    if left <= 0 or not whole:
        return deal
    for region in wanting:
        deal[region] += left * rest[region] // whole
    short = total - sum(deal.values())
    for region in sorted(wanting, key=lambda r: -(left * rest[r] % whole))[:short]:  # largest remainders
        deal[region] += 1
    return deal


def evenly(total: int, regions: Collection[RegionId]) -> dict[RegionId, int]:
    """So many rights in equal shares; what cannot be halved goes to the first names."""
    names = sorted(regions)
    return {name: total // len(names) + (place < total % len(names)) for place, name in enumerate(names)}


def passed_on(have: Mapping[RegionId, int], deal: Mapping[RegionId, int], giver: RegionId) -> dict[RegionId, int]:
    """What `giver` passes to whom so that all end with what is dealt. All givers reckon alike, so no two fill one gap."""
    spare = {region: have[region] - deal.get(region, 0) for region in sorted(have)}
    gifts: dict[RegionId, int] = {}
    for region in sorted(deal):
        lacking = deal[region] - have.get(region, 0)
        for source, amount in spare.items():
            given = min(lacking, amount)
            if given > 0:
                spare[source] -= given
                lacking -= given
                if source == giver:
                    gifts[region] = gifts.get(region, 0) + given
    return gifts
