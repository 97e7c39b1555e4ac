"""Puts a plan into effect on a world: when each fault begins, what it does, and how it is undone.

A fault has *parts*, one per link, region or worker that it hits, each with its own undoing: healing a core of the
regions takes back the parts that concern the core alone. Whatever a fault really changes is counted as a *hit* on a
region, so that the vacuity table counts faults that mattered.
"""

from __future__ import annotations

from simulator.faults import disks, future, links, members, processes, surroundings  # noqa: F401 - each fills the table
from simulator.faults.active import BEGIN, ActiveFault

__all__ = ["BEGIN", "ActiveFault"]
