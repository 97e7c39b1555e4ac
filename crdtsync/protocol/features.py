"""Feature bits: what a version can read. They travel in Hello; a kind of message or event is used once those who must
read it have its bit (design 7). A bit is never reused."""

from __future__ import annotations

from typing import Final

LEASES: Final = 1 << 0  # peer messages 20 to 22: quorum leases

OURS: Final = LEASES  # what this version says of itself
